import base64
import json
import pickle
import random
import shutil
import subprocess
import sys

import pytest
import tiktoken
from requests.exceptions import ConnectionError as NoNetwork

from data.base.errors import ConfigError, RowError
from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.tokenization import tiktoken_tokenizer
from data.tokenization.build import build_tokenizer
from data.tokenization.tiktoken_bpe import merges_of, to_fast
from data.tokenization.tiktoken_tokenizer import CL100K_PATTERN, TiktokenTokenizer

BYTES = [bytes([byte]) for byte in range(256)]
MERGED = [
    b" t",
    b"he",
    b" the",
    b"in",
    b"ing",
    b"  ",
    b"    ",
    b"\n\n",
    b"aa",
    b"aaa",
    b"ab",
    b"aba",
    b"12",
    b"||",
    b" whole",
]
MERGED += ["é".encode(), "世".encode()[:2], "世".encode(), "世界".encode(), b"<|", b"|>", b"im", b"_end"]


def write_vocab(path, tokens):
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return path


def local(path):
    return build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=TokenizerKwargs(vocab_file=str(path))))


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    return write_vocab(tmp_path_factory.mktemp("vocab") / "vocab.tiktoken", BYTES + MERGED)


@pytest.fixture(scope="module")
def saved(vocab_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tokenizer"
    local(vocab_file).save_pretrained(folder, 512)
    return folder


@pytest.fixture(scope="module")
def fast(saved):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(saved)


def test_special_tokens_of_a_local_vocabulary_follow_its_last_rank(vocab_file):
    tokenizer = local(vocab_file)
    last = 256 + len(MERGED)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (last, last, last + 1)
    assert tokenizer.stop_token_ids == [last, last + 3]
    assert tokenizer.vocab_size == last + 4


def test_special_tokens_written_in_text_stay_text(vocab_file):
    tokenizer = local(vocab_file)
    ids = tokenizer.encode("a<|im_end|><|endoftext|>")
    assert max(ids) < 256 + len(MERGED)
    assert tokenizer.decode(ids) == "a<|im_end|><|endoftext|>"
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.eos_token_id]) == "a<|endoftext|>"
    assert tokenizer.encode("").tolist() == []


ALPHABETS = ["ab ", " \t\n\r\u3000\xa0\u2028\x85\x1c\u200b\ufeff", "the ing 12.", "aé世界\U0001f469\u200d\u0301"]
ALPHABETS += ["<|im_end>", "'sS’ LL9lſK'ſ", "ǅʰªº٣½Ⅷ①9", "/\\r\n_-"]
LOOK_ALIKES = ["", "<|im_end|", "|im_start|>", " <|endoftext |>", "<|im_end\u200b|>", "<|IM_END|>", "<|im_endoftext|>"]
SPECIAL = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]


def random_text(rng, others=LOOK_ALIKES):
    alphabet = rng.choice(ALPHABETS)
    text = "".join(rng.choice(alphabet) * rng.choice([1, 1, 1, 2, 7]) for _ in range(rng.randrange(25)))
    wild = "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(5))
    return text + rng.choice(others) + rng.choice(["", wild]) + rng.choice(rng.choice(ALPHABETS))


def test_the_saved_tokenizer_gives_the_same_ids_for_any_text(vocab_file, fast):
    tokenizer, rng = local(vocab_file), random.Random(0)
    texts = [random_text(rng) for _ in range(3000)] + ["", "aaaa aaaaaaa abab", "the whole\n\n\nthing   "]
    for text in texts:
        if any(token in text for token in SPECIAL):
            continue
        ids = tokenizer.encode(text).tolist()
        assert fast.encode(text, add_special_tokens=False) == ids, text
        assert fast.decode(ids) == tokenizer.decode(ids) == text


def test_the_saved_tokenizer_gives_the_same_ids_with_special_tokens_split(vocab_file, fast):
    tokenizer, rng = local(vocab_file), random.Random(1)
    for text in (random_text(rng, LOOK_ALIKES + 2 * SPECIAL) for _ in range(3000)):
        ids = fast.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == tokenizer.encode(text).tolist(), text


def test_the_saved_tokenizer_gives_the_same_ids_for_rendered_text(vocab_file, fast):
    tokenizer, rng = local(vocab_file), random.Random(2)
    for text in (random_text(rng, 2 * SPECIAL) + rng.choice(SPECIAL) for _ in range(300)):
        assert fast.encode(text, add_special_tokens=False) == tokenizer.encode_rendered(text).tolist(), text


GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)


@pytest.mark.parametrize("pattern", [CL100K_PATTERN, GPT4_PATTERN], ids=["ours", "tiktoken's"])
def test_both_regex_engines_classify_each_character_alike(pattern):
    """Tokens of a letter, a sign or a space with the next character show where a piece ends."""
    across = [left + bytes([byte]) for byte in range(128, 256) for left in (b"a", b"!", b" ")]
    across += [bytes([byte]) + b"a" for byte in range(128, 256)]
    ranks = {token: rank for rank, token in enumerate(BYTES + across)}
    tokenizer = TiktokenTokenizer("across", ranks, pattern, {})
    fast = to_fast(ranks, pattern, {})
    for start in range(0, 0x10000, 1024):
        characters = [chr(code) for code in range(start, start + 1024) if not 0xD800 <= code < 0xE000]
        text = "".join(f"\na{c}a\n!{c}\n {c}a" for c in characters)
        assert fast.encode(text).ids == tokenizer.encode(text).tolist(), hex(start)


@pytest.mark.parametrize("text", ["a", " ", "\n", "!", "1"])
def test_a_megabyte_without_a_break_is_encoded(vocab_file, text):
    tokenizer, whole = local(vocab_file), text * 1_000_001 + "x"
    assert tokenizer.decode(tokenizer.encode(whole)) == whole


def test_the_saved_tokenizer_can_split_special_tokens(vocab_file, fast):
    text = "so <|im_start|>user\n<|im_end|><|pad|> it ends<|endoftext|>"
    assert (
        fast.encode(text, split_special_tokens=True, add_special_tokens=False)
        == local(vocab_file).encode(text).tolist()
    )
    assert fast.encode("<|im_end|>") == [fast.convert_tokens_to_ids("<|im_end|>")]


def test_possessive_patterns_mean_the_same_in_the_saved_tokenizer(tmp_path):
    pattern = r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ranks = {token: rank for rank, token in enumerate([*BYTES, b"12", b"123", b"34", b"\n ", b"  ", b"ab"])}
    tokenizer, rng = TiktokenTokenizer("possessive", ranks, pattern, {}), random.Random(1)
    fast = to_fast(ranks, pattern, {})
    for text in ["12345", "x \n\n  ", "\n \n!", *(random_text(rng) for _ in range(300))]:
        assert fast.encode(text).ids == tokenizer.encode(text).tolist(), text


def test_files_for_transformers(vocab_file, saved, fast):
    tokenizer = local(vocab_file)
    assert {"tokenizer.json", "special_tokens_map.json", "chat_template.jinja"} <= {
        file.name for file in saved.iterdir()
    }
    config = json.loads((saved / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["clean_up_tokenization_spaces"] is False
    assert config["model_max_length"] == 512
    assert (fast.bos_token_id, fast.pad_token_id) == (tokenizer.bos_token_id, tokenizer.pad_token_id)
    generation = json.loads((saved / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.stop_token_ids


def test_chatml_begins_with_the_text_of_its_first_turns(fast):
    turns = [{"role": role, "content": f" {role}'s "} for role in ("system", "user", "assistant", "user")]
    text = fast.apply_chat_template(turns[:2], tokenize=False)
    assert text == "<|im_start|>system\n system's <|im_end|>\n<|im_start|>user\n user's <|im_end|>"
    asked = fast.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert asked == text + "\n<|im_start|>assistant\n"
    assert fast.apply_chat_template(turns, tokenize=False).startswith(asked + " assistant's <|im_end|>")


def test_the_default_system_prompt_is_part_of_template_and_fingerprint(vocab_file, tmp_path):
    kwargs = TokenizerKwargs(vocab_file=str(vocab_file), use_default_system_prompt=True)
    tokenizer = build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=kwargs))
    assert tokenizer.fingerprint != local(vocab_file).fingerprint
    tokenizer.save_pretrained(tmp_path, 8)
    exported = build_tokenizer(TokenizerConfig(name=str(tmp_path)))
    asked = [{"role": "user", "content": "a"}]
    for messages in (asked, [{"role": "system", "content": "b"}, *asked]):
        text = tokenizer.render(messages, add_generation_prompt=True)
        assert exported.render(messages, add_generation_prompt=True) == text
        assert text.startswith("<|im_start|>system\n")
        assert text.count("<|im_start|>system") == 1
    assert exported.special_tokens == tokenizer.special_tokens


def test_gpt4_has_the_ids_of_dbrx(monkeypatch, tmp_path):
    special = {"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|endofprompt|>": 100276}
    ranks = {token: rank for rank, token in enumerate(BYTES)} | {b"last": 100255}
    encoding = tiktoken.Encoding("cl100k_base", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tiktoken_tokenizer, "cl100k_ranks", lambda: None)
    monkeypatch.setattr(tiktoken, "get_encoding", {"cl100k_base": encoding}.__getitem__)
    tokenizer = build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=TokenizerKwargs(model_name="gpt-4")))
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.vocab_size) == (100257, 100277, 100280)
    assert tokenizer.stop_token_ids == [100257, 100279]
    tokenizer.save_pretrained(tmp_path, 8)
    again = build_tokenizer(TokenizerConfig(name=str(tmp_path)))
    assert again.stop_token_ids == [100257, 100279]
    assert again.encode("last <|im_end|>").tolist() == tokenizer.encode("last <|im_end|>").tolist()


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        # transformers 4 needs its class; 5 accepts one without eos.
        (
            ["tokenizer_config.json", "special_tokens_map.json"],
            "(the class of its tokenizer is unknown|that tokenizer has no eos_token)",
        ),
        (["tokenizer_config.json", "tokenizer.json"], "it contains no tokenizer.json"),
    ],
)
def test_folder_that_lacks_files_is_refused_briefly(saved, tmp_path, removed, message):
    folder = shutil.copytree(saved, tmp_path / "mine")
    for name in removed:
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"^tokenizer.name is {str(folder)!r}, but {message}") as caught:
        build_tokenizer(TokenizerConfig(name=str(folder)))
    assert len(str(caught.value)) < 500


def test_a_folder_with_the_file_that_the_error_asks_for(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "mine")
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}'
    )
    assert build_tokenizer(TokenizerConfig(name=str(folder))).decode([97]) == "a"


def test_a_hugging_face_folder_is_a_tokenizer(vocab_file, saved, tmp_path):
    tiktoken_one, loaded = local(vocab_file), build_tokenizer(TokenizerConfig(name=str(saved)))
    text = "the whole <|im_end|> thing"
    for one in (loaded, pickle.loads(pickle.dumps(loaded)), pickle.loads(pickle.dumps(tiktoken_one))):
        assert one.encode(text).tolist() == tiktoken_one.encode(text).tolist()
        assert one.decode(one.encode(text)) == text
        assert one.vocab_size == tiktoken_one.vocab_size
        assert (one.pad_token_id, one.stop_token_ids) == (tiktoken_one.pad_token_id, tiktoken_one.stop_token_ids)
        assert one.chat_template == tiktoken_one.chat_template
    loaded.save_pretrained(tmp_path / "again", 64)
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["model_max_length"] == 64
    assert build_tokenizer(TokenizerConfig(name=str(tmp_path / "again"))).fingerprint == loaded.fingerprint


def test_a_text_too_large_for_the_tokenizers_library_is_refused(saved, monkeypatch):
    loaded = build_tokenizer(TokenizerConfig(name=str(saved)))
    monkeypatch.setattr("data.tokenization.hf_tokenizer.MOST_BYTES", 10)
    assert len(loaded.encode("é" * 5)) <= 10
    for encode in (loaded.encode, loaded.encode_rendered):
        with pytest.raises(
            RowError, match=r"has a text of 11 bytes, but the maximum for a Hugging Face tokenizer is 10, because"
        ):
            encode("é" * 5 + "a")


def test_the_fingerprint_differs_between_vocabularies(vocab_file, tmp_path):
    same = write_vocab(tmp_path / "elsewhere", BYTES + MERGED)
    other = write_vocab(tmp_path / "other", BYTES + MERGED[::-1])
    assert local(same).fingerprint == local(vocab_file).fingerprint != local(other).fingerprint


def test_a_hugging_face_tokenizer_needs_an_end(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, []))).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no eos_token, so a model could not learn to stop"):
        build_tokenizer(TokenizerConfig(name=str(tmp_path)))


def test_every_cut_of_a_token_is_a_merge():
    ranks = {b"a": 0, b"b": 1, b"ab": 2, b"ba": 3, b"aba": 4, b"xyz": 5}
    assert merges_of(ranks) == [(b"a", b"b"), (b"b", b"a"), (b"ab", b"a"), (b"a", b"ba")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: [*lines, "YWI="],
            r"line 257 does not contain a base64 token and its rank, such as `IQ== 0`: 'YWI='",
        ),
        (lambda lines: [*lines, "*** 256"], r"line 257 does not contain a base64 token and its rank"),
        (lambda lines: [*lines, "YWI= many"], r"line 257 does not contain a base64 token and its rank"),
        (lambda lines: [*lines, "YWI= -1"], r"line 257 does not contain a base64 token and its rank"),
        (lambda lines: [*lines, "YWI= 3"], r"line 257 repeats the rank of line 4"),
        (lambda lines: [*lines, "AA== 256"], r"line 257 repeats the token of line 1"),
        (lambda lines: [*lines, "PHxwYWR8Pg== 256"], r"line 257 is <\|pad\|>, a special token"),
        (lambda lines: lines[:-2], r"2 of the 256 single bytes are missing \(the first is 0xfe\)"),
        (lambda lines: [], r"256 of the 256 single bytes are missing"),
    ],
)
def test_a_malformed_vocabulary_is_refused_with_the_line(tmp_path, change, message):
    path = write_vocab(tmp_path / "bad.tiktoken", BYTES)
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(ConfigError, match=r"tokenizer.kwargs.vocab_file is '.*bad.tiktoken', but " + message):
        local(path)


def test_a_missing_vocabulary_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"vocab_file is '.*none', but it cannot be read: No such file"):
        local(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"but it cannot be read: Is a directory"):
        local(tmp_path)


def test_unknown_names_are_refused(tmp_path):
    for kwargs, message in (
        ({"encoding_name": "cl100k"}, r"encoding_name is 'cl100k', but tiktoken's encodings are .*cl100k_base"),
        ({"model_name": "dbrx"}, r"model_name is 'dbrx', which is unknown to tiktoken: use gpt-4"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=TokenizerKwargs(**kwargs)))
    with pytest.raises(ConfigError, match=r"tokenizer.name is '.*nowhere', but no such folder exists"):
        build_tokenizer(TokenizerConfig(name=str(tmp_path / "nowhere")))
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ConfigError, match=r"but its tokenizer cannot be loaded \(.+: .+\): use a Hugging"):
        build_tokenizer(TokenizerConfig(name=str(tmp_path)))


def test_a_missing_network_is_reported(monkeypatch):
    def refuse(name):
        raise NoNetwork("no route to host")

    monkeypatch.setattr(tiktoken_tokenizer, "cl100k_ranks", lambda: None)
    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(
        ConfigError, match=r"cannot be downloaded \(ConnectionError\): .*set TIKTOKEN_CACHE_DIR .* or use"
    ):
        build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=TokenizerKwargs(encoding_name="cl100k_base")))


def test_a_hub_name_without_a_network_names_the_reason(monkeypatch):
    from data.hub import reach

    monkeypatch.setattr(reach, "why_offline", lambda: "no network: https://hub cannot be reached (refused)")
    with pytest.raises(
        ConfigError, match=r"name is 'acme/none', .*hub's cache, .*cannot be reached \(no network: https:"
    ):
        build_tokenizer(TokenizerConfig(name="acme/none"))


@pytest.mark.subprocess
def test_importing_tokenizers_is_fast():
    heavy = "{'transformers', 'tokenizers', 'tiktoken', 'torch'}"
    code = f"import sys, data.tokenization.tokenizer, data.tokenization.build; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "set()"


def test_unused_ids_decode_to_no_text(vocab_file, saved):
    tokenizer, exported = local(vocab_file), build_tokenizer(TokenizerConfig(name=str(saved)))
    ids = [*tokenizer.encode("ab").tolist(), tokenizer.vocab_size, tokenizer.vocab_size + 40, tokenizer.pad_token_id]
    assert tokenizer.decode(ids) == exported.decode(ids) == "ab<|pad|>"

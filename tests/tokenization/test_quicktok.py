"""quicktok has tiktoken's ids, or is not used."""

import base64
import pickle
import random
import sys
import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import quicktok
import tiktoken
import tiktoken_ext.openai_public as openai_public

from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.tokenization import blocks, tiktoken_tokenizer
from data.tokenization.build import build_tokenizer
from data.tokenization.quicktok_bpe import (
    CL100K_BASE_PATTERN,
    CL100K_SHA256,
    DIFFICULT,
    FastEncoder,
    cl100k_ranks,
    fast_encoder,
    is_supported,
)
from data.tokenization.tiktoken_bpe import CL100K_PATTERN
from data.tokenization.tiktoken_tokenizer import TiktokenTokenizer

BYTES = [bytes([byte]) for byte in range(256)]
PATTERNS = {CL100K_PATTERN: "ours", CL100K_BASE_PATTERN: "cl100k_base"}
SPECIAL = {"<|endoftext|>": 200_000, "<|im_start|>": 200_001, "<|im_end|>": 200_002}
GPT4 = TokenizerConfig(name="tiktoken", kwargs=TokenizerKwargs(model_name="gpt-4"))
SPACES = [*list(" \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u200b\ufeff\x00"), "  ", "\r\n"]
SIGNS = [*list("aZz'sStTdDmMlLvVrReE019,.!-_<|>/\\"), "ſ", "'ſ", "K", "'ll", "'RE", "<|im_end|>", "é", "\u0301", "中"]


@pytest.fixture(scope="module")
def gpt4() -> TiktokenTokenizer:
    tokenizer = build_tokenizer(GPT4)
    assert isinstance(tokenizer, TiktokenTokenizer)
    assert tokenizer.fast is not None
    return tokenizer


def encoding_of(tokens: list[bytes], pattern: str) -> tiktoken.Encoding:
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=SPECIAL)


def fast_of(encoding: tiktoken.Encoding) -> FastEncoder:
    fast = fast_encoder(encoding)
    assert fast is not None
    return fast


def assert_same(fast: FastEncoder, encoding: tiktoken.Encoding, text: str) -> None:
    expected = encoding.encode_to_numpy(text, disallowed_special=())
    assert np.array_equal(fast.encode(text), expected), text[:200]


def random_text(rng: random.Random, letters: list[str]) -> str:
    alphabet = rng.choice(
        [SPACES, SIGNS, letters, [rng.choice(rng.choice([SPACES, SIGNS, letters])) for _ in range(4)]]
    )
    return "".join(rng.choice(rng.choice([alphabet, alphabet, SIGNS])) * rng.choice([1, 1, 7]) for _ in range(150))


def learned(rng: random.Random, n_merges: int) -> list[bytes]:
    """Bytes in random order, and tokens that are each the merge of two tokens before them."""
    tokens = rng.sample(BYTES, 256)
    while len(tokens) < 256 + n_merges:
        parts = [
            rng.choice([rng.choice([b"a", b"b", b" ", b"'", b"s", b"\n", b"1", b"!"]), *tokens[256:]]) for _ in "12"
        ]
        token = b"".join(parts)
        # A token that merges to other tokens would never be used.
        if len(token) < 10 and token not in tokens and is_supported({t: i for i, t in enumerate([*tokens, token])}):
            tokens.append(token)
    return tokens


def test_the_constants_are_those_of_tiktoken(monkeypatch):
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda url, expected_hash: {b"hash": expected_hash})
    made = openai_public.cl100k_base()
    assert (made["pat_str"], made["mergeable_ranks"]) == (CL100K_BASE_PATTERN, {b"hash": CL100K_SHA256})


def test_cl100k_needs_no_download(monkeypatch, gpt4):
    assert gpt4.encode("hello world <|endoftext|>").tolist() == [15339, 1917, 83739, 8862, 728, 428, 91, 29]
    assert gpt4.vocab_size == 100_280
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda url, expected_hash: cl100k_ranks())
    downloaded = tiktoken.Encoding(**openai_public.cl100k_base())
    monkeypatch.setattr(tiktoken_tokenizer, "cl100k_ranks", lambda: None)
    monkeypatch.setattr(tiktoken, "get_encoding", {"cl100k_base": downloaded}.__getitem__)
    assert build_tokenizer(GPT4).fingerprint == gpt4.fingerprint


@pytest.mark.parametrize("pattern", PATTERNS, ids=PATTERNS.get)
def test_every_character_is_in_the_class_that_tiktoken_has(pattern):
    """Tokens of a byte and its neighbour show where a piece ends."""
    across = [left + byte for byte in BYTES[128:] for left in (b"a", b"!", b" ", b"'", b"1")]
    across += [byte + right for byte in BYTES[128:] for right in (b"a", b"1", b"'", b"\n")]
    encoding = encoding_of([*BYTES, *across, b"'s", b"  "], pattern)
    fast = fast_of(encoding)
    known = [chr(code) for code in range(0x40000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    for start in range(0, len(known), 4096):
        text = "".join(f"\na{c}a!{c}'s {c}1{c}'{c}S  {c}" for c in known[start : start + 4096])
        assert_same(fast, encoding, text)


@pytest.mark.parametrize("pattern", PATTERNS, ids=PATTERNS.get)
def test_random_texts_have_the_ids_of_tiktoken(pattern):
    rng = random.Random(len(pattern))
    ranks = cl100k_ranks()
    assert ranks is not None
    encodings = [encoding_of(learned(rng, 60), pattern) for _ in range(8)]
    encodings.append(tiktoken.Encoding("cl", pat_str=pattern, mergeable_ranks=ranks, special_tokens=SPECIAL))
    pairs = [(encoding, fast_of(encoding)) for encoding in encodings]
    letters = [chr(code) for code in range(0x3100) if unicodedata.category(chr(code)) != "Cs"]
    for _ in range(250):
        text = random_text(rng, letters)
        for encoding, fast in pairs:
            assert_same(fast, encoding, text)
            rendered = encoding.encode(text, allowed_special="all")
            assert fast.encode_with_special(text).tolist() == rendered, text


def test_a_vocabulary_with_tokens_that_do_not_result_from_merges_is_encoded_with_tiktoken():
    assert fast_encoder(encoding_of([*BYTES, b"abc"], CL100K_PATTERN)) is None
    assert fast_encoder(encoding_of([*BYTES, b"abc", b"ab", b"bc"], CL100K_PATTERN)) is None
    assert fast_encoder(encoding_of([*BYTES[1:], b"ab", b"\0"], CL100K_PATTERN)) is not None
    assert fast_encoder(encoding_of([b"ab", *BYTES], CL100K_PATTERN)) is None
    assert fast_encoder(encoding_of([*BYTES, b"ab"], r"\w+|\W+")) is None
    gap = {token: 2 * rank for rank, token in enumerate(BYTES)}
    assert not is_supported(gap)


def test_random_vocabularies_are_refused_or_have_the_ids_of_tiktoken():
    rng, n_used = random.Random(3), 0
    for _ in range(100):
        parts, tokens = [b"a", b"b", b" ", b"!"], dict.fromkeys(BYTES)
        for _ in range(rng.randrange(1, 8)):
            tokens[b"".join(rng.choices(parts, k=2))[:6]] = None
            parts = [*parts, *list(tokens)[256:]]
        order = list(tokens) if rng.random() < 0.7 else rng.sample(list(tokens), len(tokens))
        encoding = encoding_of(order, CL100K_PATTERN)
        if (fast := fast_encoder(encoding)) is not None:
            n_used += 1
            assert_same(fast, encoding, "".join(rng.choices("ab !", weights=[9, 9, 1, 1], k=2000)))
    assert 20 < n_used < 80


def test_surrogates_raise_the_error_of_tiktoken(gpt4):
    for encode in (gpt4.encode, gpt4.encode_rendered):
        with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
            encode("a\ud800")


def test_texts_in_blocks_have_the_ids_of_the_whole_text(monkeypatch, gpt4):
    rng = random.Random(4)
    text = " ".join(random_text(rng, ["中", "é"]) for _ in range(20))
    plain, rendered = gpt4.encode(text), gpt4.encode_rendered(text)
    monkeypatch.setattr(blocks, "BLOCK", 100)
    assert np.array_equal(gpt4.encode(text), plain)
    assert np.array_equal(gpt4.encode_rendered(text), rendered)


def test_a_pickled_tokenizer_has_the_same_ids(gpt4):
    again = pickle.loads(pickle.dumps(gpt4))
    assert again.encode(DIFFICULT[3]).tolist() == gpt4.encode(DIFFICULT[3]).tolist()
    assert again.fast is not gpt4.fast


def test_without_quicktok_the_ids_and_the_fingerprint_are_the_same(monkeypatch, tmp_path, caplog):
    lines = [f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate([*BYTES, b"'t", b"  ", b"aa"])]
    (tmp_path / "vocab.tiktoken").write_text("".join(lines))
    config = TokenizerConfig(name="tiktoken", kwargs=TokenizerKwargs(vocab_file=str(tmp_path / "vocab.tiktoken")))
    fast = build_tokenizer(config)
    monkeypatch.setitem(sys.modules, "quicktok", None)
    slow = build_tokenizer(config)
    assert isinstance(fast, TiktokenTokenizer)
    assert isinstance(slow, TiktokenTokenizer)
    assert fast.fast is not None
    assert (slow.fast, slow.fingerprint) == (None, fast.fingerprint)
    for text in DIFFICULT:
        assert slow.encode(text).tolist() == fast.encode(text).tolist()
        assert slow.encode_rendered(text).tolist() == fast.encode_rendered(text).tolist()
    assert not caplog.messages


@pytest.mark.parametrize("defect", ["other ids", "an error"])
def test_quicktok_is_not_used_if_it_fails_its_check(monkeypatch, caplog, defect):
    class Other:
        def __init__(self, name: str, folder: str) -> None:
            if defect == "an error":
                raise RuntimeError("bad file")

        def encode_batch(self, texts: list[bytes], threads: int) -> tuple[np.ndarray, np.ndarray]:
            ids = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.uint32)
            return ids, np.cumsum([0, *map(len, texts)])

    monkeypatch.setattr(quicktok, "Tokenizer", Other)
    assert fast_encoder(encoding_of([*BYTES, b"'t"], CL100K_PATTERN)) is None
    (message,) = caplog.messages
    assert ("quicktok's ids for \"Don't" if defect == "other ids" else "failed (RuntimeError: bad file)") in message


def installed_texts(n_bytes: float) -> Iterator[str]:
    """Source code, documentation and locale data of installed packages, in a random order."""
    stdlib, packages = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    few = [Path(stdlib, "test"), Path(stdlib, "encodings"), Path("/usr/share/i18n/locales")]
    many = [Path(stdlib), Path(packages), *map(Path, ("/usr/share/i18n", "/usr/share/locale", "/usr/share/doc"))]
    suffixes = {".py", ".rst", ".md", ".json", ".txt", ".po", ".mo", ""}
    files = {file for folder in (few if n_bytes < 1e7 else many) for file in folder.rglob("*") if file.is_file()}
    n_read, paths = 0, sorted(file for file in files if file.suffix in suffixes and file.stat().st_size < 4e6)
    random.Random(5).shuffle(paths)
    for path in paths:
        content = path.read_bytes()
        n_read += len(content)
        yield content.decode("utf-8", errors="replace")
        if n_read >= n_bytes:
            return
    pytest.fail(f"only {n_read} bytes are installed")


@pytest.mark.parametrize("megabytes", [1, pytest.param(100, marks=pytest.mark.proof)])
def test_installed_texts_have_the_ids_of_tiktoken(gpt4, megabytes):
    for text in installed_texts(megabytes * 1e6):
        expected = gpt4._encoding.encode_to_numpy(text, disallowed_special=())
        assert np.array_equal(gpt4.encode(text), expected), text[:200]

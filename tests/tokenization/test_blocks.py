import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tiktoken_ext.openai_public as openai_public

from data.base.errors import RowError
from data.tokenization import blocks
from data.tokenization.tiktoken_tokenizer import CL100K_PATTERN

ROOT = Path(__file__).parents[2]
BYTES = [bytes([byte]) for byte in range(256)]
SPECIAL = {"<|endoftext|>": 1000, "<|im_end|>": 1001}
ALPHABETS = ["ab", "a", "ab ", "aé世\u0301", "!/\n", " \n", "12", "!a'sS/\r\n ", "aA'lL ", "\u3000\xa0\x1c\x85 a"]


def patterns() -> dict[str, str]:
    """The patterns of tiktoken, which are available without the vocabularies that it would download."""
    with pytest.MonkeyPatch.context() as patch:
        for load in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            patch.setattr(openai_public, load, lambda *args, **kwargs: {})
        return {make()["pat_str"]: name for name, make in openai_public.ENCODING_CONSTRUCTORS.items()}


PATTERNS = {CL100K_PATTERN: "ours"} | patterns()


def random_encoding(rng: random.Random, pattern: str) -> tiktoken.Encoding:
    """All bytes, and up to 80 tokens of at most 8 bytes over a few letters. Some of them cannot result from merges."""
    parts = [*BYTES[97:99], *BYTES[32:34], b"\n", b"1", b"/", b"'", "é".encode(), "世".encode()]
    tokens = dict.fromkeys(BYTES)
    for _ in range(rng.randrange(5, 80)):
        token = b"".join(rng.choices(parts, k=rng.choice([2, 2, 2, 3])))
        if len(token) <= 8:
            tokens[token] = None
            parts.append(token)
    order = rng.sample(list(tokens), len(tokens))
    ranks = {token: rank for rank, token in enumerate(order)}
    return tiktoken.Encoding("random", pat_str=pattern, mergeable_ranks=ranks, special_tokens=SPECIAL)


def encode_blocks(encoding: tiktoken.Encoding, text: str, *, special: bool) -> np.ndarray:
    def encode(block: str) -> np.ndarray:
        return encoding.encode_to_numpy(block, disallowed_special=()).view(np.int32)

    return blocks.encode_blocks(encoding, text, special=special, encode=encode)


def random_text(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randrange(1, 4)):
        alphabet = rng.choice(ALPHABETS)
        parts += [rng.choice(alphabet) * rng.choice([1, 1, 1, 5, 40]) for _ in range(rng.randrange(1, 40))]
        parts.append(rng.choice(["", "", "<|im_end|>", "<|im_end", "<|endoftext|>"]))
    return "".join(parts)


@pytest.mark.parametrize("pattern", PATTERNS, ids=PATTERNS.get)
def test_blocks_have_the_ids_of_the_whole_text(monkeypatch, pattern):
    rng = random.Random(len(pattern))
    for _ in range(60):
        encoding = random_encoding(rng, pattern)
        for _ in range(30):
            text = random_text(rng)
            monkeypatch.setattr(blocks, "BLOCK", rng.choice([9, 16, 33, 64]))
            monkeypatch.setattr(blocks, "OVERLAP", rng.choice([1, 2, 4]))
            plain = encoding.encode(text, disallowed_special=())
            assert encode_blocks(encoding, text, special=False).tolist() == plain, text
            rendered = encoding.encode(text, allowed_special="all")
            assert encode_blocks(encoding, text, special=True).tolist() == rendered, text


@pytest.mark.parametrize("pattern", PATTERNS, ids=PATTERNS.get)
def test_the_pattern_finds_the_pieces_that_tiktoken_finds(pattern):
    """Tokens of a letter, a sign or a space with the next character show where a piece ends."""
    across = [left + bytes([byte]) for byte in range(128, 256) for left in (b"a", b"!", b" ", b"'")]
    across += [bytes([byte]) + b"a" for byte in range(128, 256)]
    ranks = {token: rank for rank, token in enumerate(BYTES + across)}
    encoding = tiktoken.Encoding("across", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    for start in range(0, len(known), 1024):
        text = "".join(f"\na{c}a\n!{c}\n {c}a'{c}A" for c in known[start : start + 1024])
        ids = [token for part in blocks._pieces(encoding, text, 0, len(text)) for token in part]
        assert ids == encoding.encode(text), hex(ord(known[start]))


def test_merges_that_depend_on_all_that_follows_are_found(monkeypatch):
    """Each token merges a letter with its right neighbour, last one first: a split would change all ids before it."""
    text = "".join(chr(ord("a") + i) for i in range(26))
    ranks = {token: rank for rank, token in enumerate(BYTES)}
    ranks |= {text[i : i + 2].encode(): 1000 - i for i in range(25)}
    encoding = tiktoken.Encoding("chain", pat_str=CL100K_PATTERN, mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(blocks, "BLOCK", 5)
    monkeypatch.setattr(blocks, "OVERLAP", 1)
    for end in (25, 26):
        assert encode_blocks(encoding, text[:end], special=False).tolist() == encoding.encode(text[:end])


def test_a_character_unknown_to_python_is_refused_in_a_long_run(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 10)
    encoding = random_encoding(random.Random(0), CL100K_PATTERN)
    assert len(encode_blocks(encoding, "a b c d\U000effff e f g h", special=False))
    with pytest.raises(RowError, match=r"has 21 characters without a space, including U\+EFFFF, which"):
        encode_blocks(encoding, "a" * 20 + "\U000effff b", special=False)


MEASURED = """
import sys
from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.tokenization.build import build_tokenizer
kwargs = TokenizerKwargs(vocab_file="quickstart/vocab.tiktoken")
tokenizer = build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=kwargs))
text = sys.argv[1] * (16 << 20)
tokenizer.encode("all is loaded")
def peak():  # not ru_maxrss, which begins with that of the process that started this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
n = len(tokenizer.encode(text))
print(n, (peak() - before) >> 10)
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("letter", ["a", " "])
def test_16_mb_without_a_break_take_little_more_than_their_ids(letter):
    """In one piece, they need 560 MB (letters) and 3.4 GB (whitespace, with the tokenizers library)."""
    command = [sys.executable, "-c", MEASURED, letter]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    n_ids, megabytes = map(int, re.findall(r"\d+", done.stdout))
    assert n_ids > 1 << 20
    assert megabytes < n_ids * 4 / (1 << 20) + 120

"""The optional package quicktok: an encoder that is faster than tiktoken and returns the same ids, and the vocabulary
of cl100k_base, which tiktoken would have to download."""

import base64
import hashlib
import re
import tempfile
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.base.console import node_logger
from data.tokenization.tiktoken_bpe import CL100K_PATTERN

if TYPE_CHECKING:
    import tiktoken

CL100K_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
"""Hash of cl100k_base.tiktoken, which tiktoken verifies after the download."""
CL100K_BASE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
"""The regular expression with which tiktoken splits text for cl100k_base."""

_SCANNERS = {CL100K_PATTERN: "llama3", CL100K_BASE_PATTERN: "cl100k"}
"""quicktok's name for each pattern. quicktok supports more patterns, but only these have been compared with tiktoken
for all characters."""
_CL100K_SIZE = 100_256
_MOST_TOKENS, _LONGEST_TOKEN = 1 << 18, 255
_MOST_COMPARISONS = 30_000_000
"""Limits the time to check a vocabulary to about 4 s. cl100k_base needs 5 million comparisons."""
_LONG_S = "'\u017f"
"""The patterns ignore case, and U+017F is a case variant of s. Therefore, tiktoken matches this text as the suffix
`'s`, but quicktok does not."""
_PLANES = 0x40000
"""Code points from here on are private, unassigned or without a visible character, so they are not looked up."""

DIFFICULT = (
    "",
    "Don't I'LL we've They're 'tis 'S'd'M'T",
    "<|endoftext|><|im_start|>user\n<|im_end|> <|fim_prefix|><|endofprompt|>",
    "  leading\t\ttabs  \r\n\r\n windows \n\n\n\n \n  end   ",
    "\x00a\x00\x00\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000b\u200b\ufeff \x7f",
    "0 12 345 6789 12345678901 1a2b \u0663\u06f4\u0967\u2167\xbd\u00b2\U0001d7d8 3.14e-10 0xDEADBEEF",
    "caf\xe9 cafe\u0301 \xc5ngstr\xf6m \u01c5 \u0130\u0131 \ufb01 \u212a na\xefve",
    "\u4e2d\u6587\u3002\u65e5\u672c\u8a9e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4",
    "\u0e44\u0e17\u0e22 \u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "def f(x):\n    return {'a': [i**2 for i in range(10)]}  # ***\n\n\nclass A(B): pass\n",
    "https://example.org/a_b?c=d&e=f#g <br/> {{x}} </div>\\n\\\\ !!! ??? ... --- ===== //////",
    "a" * 2000 + " " * 2000 + "ab" * 1000 + "\n" * 1000 + "!" * 1000 + "7" * 1000 + "\u4e2d" * 500,
    # Whether the suffix 's becomes a separate piece depends on the class (letter, number, ...) of the character before
    # it.
    "".join(f"{chr(code)}'s" for code in range(0, _PLANES, 16) if unicodedata.category(chr(code)) not in ("Cn", "Cs")),
)
"""Texts whose ids are compared with tiktoken's before quicktok is used."""


class FastEncoder:
    """Encodes text with quicktok. Cannot be pickled."""

    def __init__(self, tokenizer: Any, encoding: "tiktoken.Encoding") -> None:
        self._tokenizer = tokenizer
        self._encoding = encoding
        self._special_ids = {token.encode(): token_id for token, token_id in encoding._special_tokens.items()}
        self._special = re.compile(b"(%s)" % b"|".join(map(re.escape, self._special_ids)))

    def encode(self, text: str) -> np.ndarray:
        """The ids as int32. Special tokens written in the text are encoded as text. Raises UnicodeEncodeError for
        surrogates, as tiktoken does."""
        content = text.encode()
        if not has_same_pieces(text):
            return self._encoding.encode_to_numpy(text, disallowed_special=()).view(np.int32)
        return self._encode_all([content])[0]

    def encode_with_special(self, text: str) -> np.ndarray:
        """The ids as int32. Special tokens written in the text are encoded as special tokens."""
        contents = text.encode()
        if not has_same_pieces(text):
            return self._encoding.encode_to_numpy(text, allowed_special="all").view(np.int32)
        parts = self._special.split(contents)
        ids, ends = self._encode_all(parts[::2])
        return np.insert(ids, ends[:-1], [self._special_ids[token] for token in parts[1::2]])

    def _encode_all(self, contents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of several texts in UTF-8, one after another, and the position in the ids at which each text
        ends."""
        ids, offsets = self._tokenizer.encode_batch(contents, threads=1)
        return ids.view(np.int32), offsets[1:]


def has_same_pieces(text: str) -> bool:
    """Whether quicktok and tiktoken are known to split the text into the same pieces.

    Both libraries contain tables of letters and numbers, but of different versions of Unicode. They can differ only for
    characters that are not in Python's version, which is older.
    """
    if text.isascii():
        return True
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return _LONG_S not in text and not _unknown_characters()[np.minimum(codes, _PLANES)].any()


@lru_cache
def _unknown_characters() -> np.ndarray:
    """For each code point below _PLANES, whether Python's version of Unicode lacks it. The last entry is True."""
    return np.array([unicodedata.category(chr(code)) == "Cn" for code in range(_PLANES)] + [True])


def fast_encoder(encoding: "tiktoken.Encoding") -> FastEncoder | None:
    """An encoder that returns the same ids as `encoding`, or None if quicktok is not installed or does not support the
    encoding. If quicktok fails or returns different ids, this is logged, and None is returned.
    """
    try:
        import quicktok  # noqa: F401 - only to find out whether it is installed
    except ImportError:
        return None
    try:
        fast = _open(encoding)
        if fast is None:
            return None
        differs = [text for text in DIFFICULT if fast.encode(text).tolist() != encoding.encode_ordinary(text)]
        if not differs:
            return fast
        defect = f"quicktok's ids for {differs[0][:40]!r} are not equal to tiktoken's"
    except Exception as error:  # any error, because tiktoken can be used in any case
        defect = f"quicktok failed ({type(error).__name__}: {error})"
    node_logger.warning(
        f"quicktok is installed, but texts are encoded with tiktoken, which is slower, because {defect}: "
        "install the version of quicktok-v1 that pyproject.toml requires"
    )
    return None


def _open(encoding: "tiktoken.Encoding") -> FastEncoder | None:
    """An encoder that has not been checked, or None if quicktok does not support the encoding."""
    import quicktok
    from quicktok import _import_core

    ranks, scanner = encoding._mergeable_ranks, _SCANNERS.get(encoding._pat_str)
    if scanner is None:
        return None
    if len(ranks) == _CL100K_SIZE and ranks == cl100k_ranks():
        return FastEncoder(quicktok.get_encoding("cl100k_base"), encoding)
    if not is_supported(ranks):
        return None
    with tempfile.TemporaryDirectory() as folder:
        _import_core.write_files(folder, "vocabulary", ranks, {}, scanner, nfc=False)
        tables = Path(quicktok.__file__).parent / "data"
        _import_core.ensure_tables(folder, str(tables), scanner, nfc=False)
        return FastEncoder(quicktok.Tokenizer("vocabulary", folder), encoding)


def is_supported(ranks: Mapping[bytes, int]) -> bool:
    """Whether quicktok's algorithm returns the same ids as tiktoken for this vocabulary.

    The ranks must be 0, 1, 2 and so on, and each token must result from merges of tokens of lower rank. This is true
    for every vocabulary that was learned by byte-pair encoding. If a token cannot result from merges, tiktoken uses it
    only for a piece of text that is equal to the token, but quicktok uses it everywhere.
    """
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) > _MOST_TOKENS:
        return False
    if any(bytes([byte]) not in ranks for byte in range(256)) or max(map(len, ranks)) > _LONGEST_TOKEN:
        return False
    if sum(len(token) ** 2 for token in ranks) > _MOST_COMPARISONS:
        return False
    return all(_results_from_merges(token, ranks) for token in ranks)


def _results_from_merges(token: bytes, ranks: Mapping[bytes, int]) -> bool:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        pairs = [ranks.get(parts[i] + parts[i + 1], _MOST_TOKENS) for i in range(len(parts) - 1)]
        rank = min(pairs)
        first = pairs.index(rank)
        left, right = parts[first : first + 2]
        if not max(ranks[left], ranks[right]) < rank <= ranks[token]:
            return False
        parts[first : first + 2] = [left + right]
    return True


@lru_cache
def cl100k_ranks() -> dict[bytes, int] | None:
    """The ranks of cl100k_base, or None if quicktok is not installed or contains another vocabulary."""
    try:
        import quicktok

        tokenizer = quicktok.get_encoding("cl100k_base")
        ranks = {tokenizer.decode_single_token_bytes(rank): rank for rank in range(_CL100K_SIZE)}
    except Exception:  # any error, because tiktoken can be used instead
        return None
    file = b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
    return ranks if hashlib.sha256(file).hexdigest() == CL100K_SHA256 else None

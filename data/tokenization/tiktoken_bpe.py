"""tiktoken's vocabulary format: read it, and convert it to a tokenizer of the `tokenizers` library."""

import base64
import binascii
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.base.errors import ConfigError, os_errors_named

if TYPE_CHECKING:
    import tokenizers

_KEY = "tokenizer.kwargs.vocab_file"

# The pattern of cl100k_base, in syntax with the same meaning for the regex engines of tiktoken and of the tokenizers
# library.
CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_vocabulary(path: Path, special_tokens: Sequence[str] = ()) -> dict[bytes, int]:
    """Return a mapping from tokens to ranks, read from a file with a token in base64 and its rank on each line.

    Raises ConfigError if the file does not exist, if a line is malformed (the message contains the line number), if one
    of the 256 single bytes is missing, or if the file contains a special token, because special tokens get their own
    ids.
    """
    where = f"is {str(path)!r}, but"
    with os_errors_named(f"{where} it", key=_KEY):
        lines = path.read_bytes().splitlines()
    line_of: dict[bytes | int, int] = {}
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        token, rank = _parse_line(line, f"{where} line {number}")
        for kind, value in (("token", token), ("rank", rank)):
            if value in line_of:
                raise ConfigError(
                    f"{where} line {number} repeats the {kind} of line {line_of[value]}: {_short(line)}",
                    key=_KEY,
                )
            line_of[value] = number
        if token in (special.encode() for special in special_tokens):
            raise ConfigError(
                f"{where} line {number} is {token.decode()}, a special token, which gets an id after the last rank: "
                "remove the line",
                key=_KEY,
            )
        ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ConfigError(
            f"{where} {len(missing)} of the 256 single bytes are missing (the first is {missing[0]:#04x}), so some "
            "texts could not be encoded",
            key=_KEY,
        )
    return ranks


def _parse_line(line: bytes, where: str) -> tuple[bytes, int]:
    parts = line.split()
    try:
        token, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
    except (IndexError, ValueError, binascii.Error):
        token, rank = b"", -1
    if len(parts) != 2 or not token or rank < 0:
        raise ConfigError(
            f"{where} does not contain a base64 token and its rank, such as `IQ== 0`: {_short(line)}", key=_KEY
        )
    return token, rank


def _short(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", "backslashreplace"))


def to_fast(ranks: dict[bytes, int], pattern: str, special_tokens: dict[str, int]) -> "tokenizers.Tokenizer":
    """A byte-level BPE that returns the same ids as tiktoken for any text without special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    letters = byte_letters()
    written = {token: "".join(letters[byte] for byte in token) for token in ranks}
    # Special tokens are also added to the model's vocabulary, so that there may be gaps between ids (100256 in cl100k).
    vocab = {written[token]: rank for token, rank in ranks.items()} | special_tokens
    merges = [(written[left], written[right]) for left, right in merges_of(ranks)]
    # ignore_merges is set, because tiktoken does not merge a piece that is already a token.
    fast = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True, byte_fallback=False))
    # In the regex syntax of the tokenizers library, {1,3}+ is a repetition and not a possessive quantifier. All other
    # syntax in the pattern is the same.
    split = pre_tokenizers.Split(Regex(re.sub(r"(\{[\d,]+\})\+", r"\1", pattern)), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    fast.decoder = decoders.ByteLevel()
    fast.post_processor = processors.ByteLevel(trim_offsets=False)
    fast.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in sorted(special_tokens, key=special_tokens.__getitem__)
        ]
    )
    return fast


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that merges into a token, in the order of tiktoken.

    tiktoken merges the adjacent tokens whose merged bytes have the lowest rank, while the tokenizers library ranks
    pairs. For each token, all pairs that merge into it are therefore listed one after another.
    """
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        for cut in range(len(token) - 1, 0, -1):
            if token[:cut] in ranks and token[cut:] in ranks:
                merges.append((token[:cut], token[cut:]))
    return merges


def byte_letters() -> list[str]:
    """The printable character for each byte in GPT-2's byte-level BPE: the character with the same code, or one from
    U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, others = [], 0
    for byte in range(256):
        letters.append(chr(byte if byte in printable else 0x100 + others))
        others += byte not in printable
    return letters

"""Find secrets that are recognized by the text around them: values assigned to names such as `api_key`, HTTP
authorization, and logins in URLs. Searches take linear time.

Messages are redacted by data/secrets/redaction.py, which prefers to hide too much. Here, a value must also look random,
because training text is full of names such as `token` and of placeholders.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from data.secrets.names import is_secret_name

Span = tuple[int, int]

_NAMES = ("password", "passwd", "passphrase", "pwd", "secret", "token", "credential", "key")
"""Every name of a secret contains one of these words in lower or upper case."""
_NAME = re.compile(
    r"(?<![A-Za-z0-9_.-])(?P<name>[A-Za-z0-9_.-]{1,64}+)(?:\\?[\"'])?\s{0,3}(?::=|=>|[:=])\s{0,3}(?![=\s])"
)
_QUOTED = re.compile(r"\\?[\"'](?P<secret>[^\"'\s\\]{8,256}+)\\?[\"']")
_PLAIN = re.compile(r"(?P<secret>[^\s\"'`,;(){}\[\]<>|&\\$]{8,256}+)(?=[\s\"'`,;)}\]>|&\\]|\Z)")
_AUTHORIZATION = re.compile(
    r"(?:[Bb]earer|BEARER|[Aa]uthorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:[Bb]asic|[Tt]oken))\s{1,3}"
    r"(?P<secret>[A-Za-z0-9._~+/-]{12,4096}+={0,2})"
)
_LOGIN = re.compile(r"://(?P<user>[^\s/:@\"'<>{}$]{0,64}+):(?P<secret>[^\s/:@\"'<>{}$]{3,128}+)@")
_PLACEHOLDER = re.compile(
    r"example|your|change|placeholder|xxxx|\*\*|\.\.\.|password|passwd|secret|dummy|sample|foobar|1234567|abcdef"
    r"|lorem|redacted|hidden|insert|replace|null|undefined|localhost",
    re.IGNORECASE,
)
"""Parts of values that only show where a secret belongs."""
_WORDS = re.compile(r"[^A-Za-z0-9]+")
_MIXED = re.compile(r"(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])")
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_MIN_ENTROPY = 2.75
"""In bits per character. A random text of n different characters has log2(n) bits: 3 for n = 8."""


def find_secret_values(text: str) -> Iterator[Span]:
    """Values that look random after the name of a secret, HTTP authorization, and passwords in URLs that are not
    only letters."""
    lowered = text.lower()
    if any(name in lowered for name in _NAMES):
        yield from _assigned(text)
    if "earer" in text or "BEARER" in text or "uthorization" in text:
        for match in _AUTHORIZATION.finditer(text):
            if looks_random(match["secret"]):
                yield match.span("secret")
    if "://" in text:
        for match in _LOGIN.finditer(text):
            is_name = match["secret"].isalpha() or match["secret"] == match["user"]
            if not is_name and not _PLACEHOLDER.search(match["secret"]):
                yield match.span("secret")


def _assigned(text: str) -> Iterator[Span]:
    for match in _NAME.finditer(text):
        if not _is_secret_name(match["name"]):
            continue
        value = _QUOTED.match(text, match.end())
        if value is not None and looks_random(value["secret"]):
            yield value.span("secret")
            continue
        value = _PLAIN.match(text, match.end())
        # Without quotes, the value may also be an expression or the next word of a sentence.
        if value is not None and _DOTTED.fullmatch(value["secret"]) is None and looks_random(value["secret"], mixed=3):
            yield value.start(), value.start() + len(value["secret"].rstrip(".:!?"))


@lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    return is_secret_name(name)


def looks_random(value: str, *, mixed: int = 1) -> bool:
    """Whether a value may be a password or a key, and is not a placeholder, an identifier or a version. Its parts
    between punctuation must have at least `mixed` changes between letters and digits, and its entropy must be
    high."""
    if _PLACEHOLDER.search(value) is not None:
        return False
    n_mixed = sum(len(_MIXED.findall(word)) for word in _WORDS.split(value))
    return n_mixed >= mixed and _entropy(value) >= _MIN_ENTROPY


def _entropy(text: str) -> float:
    counts = Counter(text).values()
    return math.log2(len(text)) - sum(count * math.log2(count) for count in counts) / len(text)

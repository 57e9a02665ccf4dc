"""Formats of keys and tokens whose providers gave them a recognizable prefix.

Each format is precise enough to be searched for in any text. What only looks like a secret because of the words around
it is recognized in redaction.py (for messages) and in data/curation/steps (for training text).
"""

import re
from collections.abc import Iterator
from typing import NamedTuple


class SecretFormat(NamedTuple):
    """The format of a kind of key."""

    name: str
    hints: tuple[str, ...]
    """Every match contains one of these substrings. They are searched for first, which is faster."""
    pattern: re.Pattern[str]
    """The format. The group `secret` is the key without the prefix that identifies its kind."""


def _format(name: str, prefix: str, secret: str, *hints: str) -> SecretFormat:
    # A part of a longer word is not a key. This also makes the search linear: a word is tried once, at its start.
    pattern = rf"(?<![A-Za-z0-9_-]){prefix}(?P<secret>{secret})(?![A-Za-z0-9_-])"
    return SecretFormat(name, hints, re.compile(pattern, re.ASCII))


SECRET_FORMATS = (
    _format("AWS", r"(?<![/+])A(?:KI|SI|BI|CC)A", r"[A-Z2-7]{16}(?![/+])", "AKIA", "ASIA", "ABIA", "ACCA"),
    _format("GitHub", r"gh[oprsu]_", r"[A-Za-z0-9]{36,255}+", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    _format("GitHub", r"github_pat_", r"[A-Za-z0-9]{22}_[A-Za-z0-9]{59}", "github_pat_"),
    _format("GitLab", r"glpat-", r"[\w-]{20,64}+", "glpat-"),
    _format("Slack", r"xox[abeoprs](?:\.xox[bp])?-", r"(?=[A-Za-z-]{0,8}\d)[A-Za-z0-9-]{12,255}+", "xox"),
    _format("Slack", r"xapp-", r"\d-[A-Z0-9]{9,12}-\d{10,14}-[a-z0-9]{32,128}+", "xapp-"),
    _format("Slack", r"https://hooks\.slack\.com/services/", r"T\w{8,12}/B\w{8,12}/\w{20,32}+", "hooks.slack"),
    _format("Google", r"(?<![/+])AIza", r"[\w-]{35}(?![/+])", "AIza"),
    _format("Google", r"ya29\.", r"(?=[A-Za-z_-]{0,32}\d)[\w-]{30,1024}+", "ya29."),
    _format("Google", r"GOCSPX-", r"[\w-]{28}", "GOCSPX-"),
    _format("Stripe", r"(?:sk|rk)_(?:live|test)_", r"[A-Za-z0-9]{16,255}+", "k_live_", "k_test_"),
    _format("Stripe", r"whsec_", r"[A-Za-z0-9+/]{32,64}+", "whsec_"),
    _format("OpenAI", r"sk-", r"[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}|[A-Za-z0-9]{48}", "sk-"),
    _format("OpenAI", r"sk-(?:proj|svcacct|admin)-", r"(?=[A-Za-z_-]{0,32}\d)[\w-]{40,255}+", "sk-"),
    _format("Anthropic", r"sk-ant-[a-z]{2,8}\d\d-", r"[\w-]{80,128}+", "sk-ant-"),
    _format("Hugging Face", r"(?:hf|api_org)_", r"[A-Za-z0-9]{34}", "hf_", "api_org_"),
    _format("npm", r"npm_", r"[A-Za-z0-9]{36}", "npm_"),
    _format("PyPI", r"pypi-AgE", r"[\w-]{60,512}+", "pypi-AgE"),
    _format("SendGrid", r"SG\.", r"[\w-]{22}\.[\w-]{43}", "SG."),
    _format("Telegram", r"(?:bot)?\d{8,10}:AA", r"[\w-]{33}", ":AA"),
    _format("JSON Web Token", r"eyJ", r"[\w-]{10,4096}+\.eyJ[\w-]{10,8192}+\.[\w-]{16,2048}+", ".eyJ"),
)  # fmt: skip
"""Sources: the providers' documentation, and the formats that the scanner gitleaks detects. Publishable keys, such as
Stripe's `pk_`, are not secrets."""
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?P<secret>[^-]*+(?:-{1,4}(?!-)[^-]*+)*+)"  # up to the next five dashes
    r"-----END (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
)
"""A private key in PEM (RFC 7468) or OpenPGP (RFC 9580) armor, also as a string with the escape sequence \\\\n."""
_IN_KEY = re.compile(r"[A-Za-z0-9+/]{24}")


def find_keys(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    """The provider and the match of each key in the text, without private keys. Keys that end with EXAMPLE, as in
    documentation, are not included."""
    for one in SECRET_FORMATS:
        if any(hint in text for hint in one.hints):
            for match in one.pattern.finditer(text):
                if not match["secret"].endswith("EXAMPLE"):
                    yield one.name, match


def find_private_keys(text: str) -> Iterator[re.Match[str]]:
    """The private keys in the text. Headers around a placeholder are not included."""
    if "PRIVATE KEY" in text:
        for match in _PRIVATE_KEY.finditer(text):
            if _IN_KEY.search(match["secret"]):
                yield match

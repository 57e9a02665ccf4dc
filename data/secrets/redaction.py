"""Recognize secrets in texts by the names that precede them or by their format, and remove them.

All text that is shown or written is passed to `redacted`, which replaces each secret with ***. Text that a program will
parse again is passed to `without_secrets`, which removes the secrets.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from data.secrets.formats import find_keys, find_private_keys
from data.secrets.names import AWS_KEYS, is_secret_name, variable_of

HIDDEN = "***"

_OF_SCHEME = {
    "s3": AWS_KEYS,
    "gs": "GCS_KEY and GCS_SECRET, or GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "HF_TOKEN",
    "sftp": "COMPOSER_SFTP_KEY_FILE",
    "azure": "AZURE_ACCOUNT_NAME and AZURE_ACCOUNT_ACCESS_KEY",
    "azure-dl": "AZURE_ACCOUNT_NAME and AZURE_ACCOUNT_ACCESS_KEY",
}
"""Scheme of an address -> the environment variables from which Streaming reads the credentials."""
_USER_IS_A_PLACE = ("sftp", "ssh", "git+ssh", "oci", "abfs", "abfss", "wasb", "wasbs")
"""Schemes in which the name before the @ (a user, a bucket or a container) is part of the location."""

_LONGEST_SCHEME = 20
_LONG = 8
"""User names and passwords with at least this number of characters are also hidden where they appear without the rest
of the login."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SCHEME_BEFORE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*\Z")
_LOGIN = re.compile(
    r"""://(?P<secret>[^/\s"<>]{1,1024}                 # up to the last @ before the path;
    |[^/\s:@\["<>]{1,256}:(?!\d+/)[^\s@"<>]{1,1024}  # or the password contains a /, as AWS secret keys may
    )@""",
    re.VERBOSE,
)
_PARAMETER = re.compile(r"[?&](?P<name>[\w.-]{1,64})=(?P<secret>[^&\s#\"'<>]+)")
_QUERY = re.compile(r"\?(?P<query>[^\s#?]*)")
_NAME = re.compile(
    r"""(?<![\w.-])(?P<name>-{0,2}[A-Za-z_][\w-]*+(?:\[\d+\]|\.[\w-]+)*+)
    (?=(?P<between>\\?["']?\s{0,3}[:=](?![:=])\s{0,3}|\s(?:is|was|has)\s(?=["'])))""",
    re.VERBOSE,
)
_VALUE = re.compile(
    r"""\\"(?P<escaped>[^"\\\n]*)|"(?P<double>(?:[^"\\\n]|\\.)*)|'(?P<single>(?:[^'\\\n]|\\.)*)
    |(?P<plain>[^\s,;&"'()\[\]{}<>\\]+)""",
    re.VERBOSE,
)
_CALL = re.compile(r"[A-Za-z_][\w.]*[(\[]")
_NO_SECRET = re.compile(r"null|none|true|false|~|\d{1,3}|[$<[].*|", re.IGNORECASE | re.DOTALL)
"""Values that are not secrets even after the name of a secret: null, booleans, shell variables, or `<|endoftext|>`."""

_BY_SHAPE: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "HF_TOKEN",  # the pattern must not match the key hf_checkpointer
        re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_(?P<secret>(?=[a-z]*[A-Z0-9]|[a-z]{16})[A-Za-z0-9]{12,})"),
    ),
    (AWS_KEYS, re.compile(r"(?<![A-Za-z0-9])A[KS]IA(?P<secret>[A-Z0-9]{16})(?![A-Za-z0-9])")),
    (AWS_KEYS, re.compile(r"A[KS]IA[A-Z0-9]{16}[\s:,;|]{1,3}(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])")),
    ("WANDB_API_KEY", re.compile(r"(?<![A-Za-z0-9])local-(?P<secret>[0-9a-f]{40})(?![0-9a-z])")),
    ("WANDB_API_KEY", re.compile(r"wandb_v\d_(?P<secret>[\w-]{16,})")),
    (
        "WANDB_API_KEY",  # a key has the format of a git commit, so the words before the key are also matched
        re.compile(
            r"(?:wandb|w&b)[^\n]{0,40}?(?:key|login|password)\W{1,4}(?:\w+\W{1,4}){0,2}?(?P<secret>[0-9a-f]{40})"
            r"(?![0-9a-f])",
            re.IGNORECASE,
        ),
    ),
    (
        "",
        re.compile(r"""authorization\\?["']?\s{0,3}[:=]\s{0,3}\\?["']?(?P<secret>[^\n"'\\]+)""", re.IGNORECASE),
    ),
    ("", re.compile(r"\bbearer\s{1,3}(?P<secret>(?=\S*\d|\S{16})[\w.~+/=-]{8,})", re.IGNORECASE)),
)
"""(the environment variable that contains the secret, the secret's format). These formats also match keys that are
abbreviated or embedded in a message. The keys of other providers are in secret_formats.py."""
_SHAPED = ("AWS", "Hugging Face")
"""The providers in secret_formats.py that _BY_SHAPE replaces."""


class _Secret(NamedTuple):
    start: int
    end: int
    source: str
    """The environment variables from which a run can read the secret; empty if there are none."""


class Stripped(NamedTuple):
    """A text from which the secrets were removed."""

    text: str
    sources: list[str]
    """For each secret in the text, the environment variables to use instead of the secret; empty if there are none."""


def is_address(text: str) -> bool:
    """Whether the text begins with a scheme, such as https:// or s3://."""
    return _SCHEME.match(text) is not None


def redacted(text: str) -> str:
    """Replace each secret in the text with ***."""
    if not (secrets := _secrets(text)):
        return text
    result = _replaced(text, secrets, HIDDEN)
    # Libraries quote parts of an address, as in `Invalid bucket name "KEY:SECRET@bucket"`, or only the part before a /.
    for match in _LOGIN.finditer(text):
        login = match["secret"]
        _, colon, password = login.partition(":")
        for part in (login, password, *password.split("/")) if colon else ():
            if len(part) >= _LONG:
                result = result.replace(part, HIDDEN)
    return result


def without_secrets(text: str) -> Stripped:
    """Remove the secrets from a config value, so that a program can still parse the result. Logins and secret
    parameters are removed from addresses. All other secrets are shortened to the prefix that identifies the kind of
    secret, such as `hf_`."""
    sources: list[str] = []

    def without_login(match: re.Match[str]) -> str:
        scheme, user = _scheme(text, match), match["secret"].partition(":")[0]
        if not _is_secret_login(scheme, match["secret"]):
            return match[0]
        sources.append(_OF_SCHEME.get(scheme, ""))
        return f"://{user}@" if scheme in _USER_IS_A_PLACE else "://"

    def without_parameters(match: re.Match[str]) -> str:
        parameters = match["query"].split("&")
        kept = [one for one in parameters if not _is_secret_parameter(one.partition("=")[0])]
        sources.extend([""] * (len(parameters) - len(kept)))
        return f"?{'&'.join(kept)}" if kept else ""

    result = _LOGIN.sub(without_login, text)
    if is_address(text):
        result = _QUERY.sub(without_parameters, result)
    left = _secrets(result)
    return Stripped(_replaced(result, left, ""), sources + [secret.source for secret in left])


def without_login(address: str) -> str:
    """The address without credentials, so that it is the same for all users."""
    return without_secrets(address).text if is_address(address) else address


def _secrets(text: str) -> list[_Secret]:
    """The secrets in the text, in the order in which they appear. Overlapping secrets are merged."""
    found: list[_Secret] = []
    for secret in sorted(_found(text)):
        if not found or secret.start >= found[-1].end:
            found.append(secret)
        elif secret.end > found[-1].end:
            found[-1] = found[-1]._replace(end=secret.end)
    return found


def _found(text: str) -> Iterator[_Secret]:
    for match in _LOGIN.finditer(text):
        if _is_secret_login(scheme := _scheme(text, match), match["secret"]):
            yield _Secret(*match.span("secret"), _OF_SCHEME.get(scheme, ""))
    for match in _PARAMETER.finditer(text):
        if _is_secret_parameter(match["name"]):
            yield _Secret(*match.span("secret"), "")
    yield from _found_by_name(text)
    for source, shape in _BY_SHAPE:
        for match in shape.finditer(text):
            yield _Secret(*match.span("secret"), source)
    for name, match in find_keys(text):
        if name not in _SHAPED:
            yield _Secret(*match.span("secret"), "")
    for match in find_private_keys(text):
        yield _Secret(*match.span("secret"), "")


def _found_by_name(text: str) -> Iterator[_Secret]:
    end = 0
    for match in _NAME.finditer(text):
        if match.start() < end or not is_secret_name(match["name"]):
            continue
        value = _VALUE.match(text, match.end("between"))
        if value is None or _NO_SECRET.fullmatch(value[value.lastgroup or 0]) or not _is_followed_by_value(text, match):
            continue
        end = value.end()
        yield _Secret(*value.span(value.lastgroup or 0), variable_of(match["name"]))


def _replaced(text: str, secrets: list[_Secret], by: str) -> str:
    parts, end = [], 0
    for secret in secrets:
        parts += [text[end : secret.start], by]
        end = secret.end
    return "".join([*parts, text[end:]])


def _scheme(text: str, match: re.Match[str]) -> str:
    before = _SCHEME_BEFORE.search(text, max(match.start() - _LONGEST_SCHEME, 0), match.start())
    return before[0].lower() if before is not None else ""


def _is_secret_login(scheme: str, login: str) -> bool:
    return ":" in login or scheme not in _USER_IS_A_PLACE


def _is_secret_parameter(name: str) -> bool:
    return is_secret_name(name) or name.lower().rpartition("-")[2] in ("sig", "signature", "key")


def _is_followed_by_value(text: str, match: re.Match[str]) -> bool:
    """Whether the text after the name is a value and not the rest of a sentence."""
    name, between = match["name"], match["between"]
    if _CALL.match(text, match.end("between")):
        return " " not in between  # if there is a space, this is a line of code in a traceback
    if "=" in between or name.lower() != "token":
        return True
    # `token` usually means a token of text.
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    return ":" in between and (line.endswith(('"', "'")) or not line.strip(" -{"))

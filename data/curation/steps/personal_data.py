"""Find e-mail addresses and IP addresses in a text. Searches take linear time."""

import ipaddress
import re
from collections.abc import Iterator

Span = tuple[int, int]
"""Start and end in the text."""

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_%+@-])[A-Za-z0-9_%+-](?:\.?[A-Za-z0-9_%+-]){0,63}"
    r"@(?P<domain>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}(?P<top>[A-Za-z]{2,24}))(?![A-Za-z0-9(]|\.[A-Za-z0-9])"
)
_FILE_TYPES = re.compile(
    r"png|jpe?g|gif|svg|webp|avif|ico|bmp|s?css|less|m?js|[jt]sx?|json|ya?ml|toml|xml|html?|php|txt|csv|tar|tgz|gz|bz2|xz"
    r"|whl|jar|war|exe|dll|deb|rpm",
    re.IGNORECASE,
)
"""Not top-level domains, but the last parts of file names such as `logo@2x.png` and `package@1.0.tgz`."""
_RESERVED = re.compile(
    r"(?:.*\.)?(?:example\.(?:com|net|org)|example|test|invalid|localhost|local|internal|lan)", re.IGNORECASE
)
"""Domains for documentation, tests and local networks. Source: RFC 2606."""
_LONGEST_LOGIN = 256
_END_OF_LOGIN = re.compile(r"[\s/?#@\"'<>]")

_IPV4 = re.compile(
    r"[0-9](?<![\w.][0-9])(?<![A-Za-z_]-[0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\w|-[A-Za-z]|\.[0-9])", re.ASCII
)
_IPV6 = re.compile(
    r"(?:[23][0-9A-Fa-f]{3}|[Ff][CcDdEe][0-9A-Fa-f]{2})(?<![\w:.][0-9A-Fa-f]{4})"
    r"(?:::?[0-9A-Fa-f]{1,4}){1,7}(?![\w:]|\.[0-9])",
    re.ASCII,
)
"""The first group of a global unicast, unique local or link-local address. Sources: RFC 4291, RFC 4193."""
_VERSION = re.compile(
    r"(?:(?:\b(?:v|ver|release|rev|revision|build|firmware|patch|section|sec|chapter|clause|rule|article|oid)|version|§)"
    r"[\s:=\"'>(#]{0,3}|[=~><!]=|[A-Za-z]/)\Z",
    re.IGNORECASE,
)
"""Words and signs before a version number or the number of a section. `name/1.2.3.4` is a version in a user agent."""
_BEFORE = 24
"""Number of characters before an address in which _VERSION is searched for."""


def find_emails(text: str) -> Iterator[Span]:
    """E-mail addresses. These are not included: addresses in domains that are reserved for documentation, the login
    `git@HOST`, logins in URLs, file names such as `logo@2x.png`, and matrix products such as `a@b.sum()`."""
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        is_file = _FILE_TYPES.fullmatch(match["top"]) is not None
        is_nobody = match[0].startswith("git@") or _RESERVED.fullmatch(match["domain"]) is not None
        if not is_file and not is_nobody and not _is_login(text, match.start()):
            yield match.span()


def find_ip_addresses(text: str, *, private: bool) -> Iterator[Span]:
    """Public IPv4 and IPv6 addresses, and with `private` also addresses of private networks.

    Version numbers have the format of IPv4 addresses. Therefore these are not included: numbers after words such as
    `version`, numbers that end with .0, and numbers whose four parts are single digits, such as 1.2.3.4 and the public
    name server 8.8.8.8.
    """
    for match in _IPV4.finditer(text):
        if _is_host(match[0], private) and not _VERSION.search(text, max(match.start() - _BEFORE, 0), match.start()):
            yield match.span()
    if "::" in text or text.count(":") >= 7:
        for match in _IPV6.finditer(text):
            if _is_address(match[0], private):
                yield match.span()


def _is_login(text: str, start: int) -> bool:
    """Whether the characters before `start` are the beginning of a URL with a login, such as `https://user:pass`."""
    scheme = text.rfind("://", max(start - _LONGEST_LOGIN, 0), start)
    return scheme >= 0 and _END_OF_LOGIN.search(text, scheme + 3, start) is None


def _is_host(text: str, private: bool) -> bool:
    return len(text) > 7 and not text.endswith(".0") and _is_address(text, private)


def _is_address(text: str, private: bool) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.is_multicast or address.is_loopback or address.is_reserved:
        return False
    return address.is_global or (private and any(address in network for network in _PRIVATE))


_PRIVATE = [
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")
]
"""Private networks. Sources: RFC 1918, RFC 3927, RFC 4193, RFC 4291."""

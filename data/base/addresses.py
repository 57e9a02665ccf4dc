"""Addresses (URLs): which texts are one, and how they are shown."""

import re

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_SECRET = re.compile(r"(?i)([?&][\w.-]*(?:token|key|secret|password|sig|credential)[\w.-]*=)[^&\s]+")


def is_address(text: str) -> bool:
    """Does it begin with a scheme, such as https:// or s3://?"""
    return _SCHEME.match(text) is not None


def without_login(text: str) -> str:
    """The text; if there is an address in it, without login and secrets."""
    return _SECRET.sub(r"\1***", _LOGIN.sub("***", text))

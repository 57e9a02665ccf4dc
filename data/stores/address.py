"""URLs of folders in object stores, such as s3://bucket/prefix: their validation, and the local folder for a URL."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

from data.base.paths import STORES, shown

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_KEPT = 700
"""Maximum size of a prefix in bytes. It is less than the maximum size of a key, so that names can be appended to the
prefix."""


def url_defect(text: str) -> str | None:
    """Return an error message if `text` is not the URL of a folder in an object store; otherwise return None. The
    message can be appended to the name of the key."""
    url = urlsplit(text)
    known = " and ".join(f"{scheme}://" for scheme in STORES)
    if url.scheme not in STORES:
        return f"is {shown(text)}, but the supported object stores are {known}: use one of these, or a path"
    if "@" in url.netloc:
        return (
            f"is {shown(text)}, but credentials are not allowed in a URL: remove them, and set them in the environment"
        )
    if url.query or url.fragment or _BUCKET.fullmatch(url.netloc) is None:
        return f"is {shown(text)}, but it must have the form {url.scheme}://BUCKET/PREFIX"
    parts = url.path.strip("/").split("/")
    if any(part in (".", "..") for part in parts) or ("" in parts and parts != [""]) or not text.isprintable():
        return f"is {shown(text)}, but a prefix must not contain empty, . or .. parts: remove these parts"
    if (n_bytes := len(url.path.encode())) > _KEPT:
        return f"is {shown(text)}, whose prefix has {n_bytes} bytes, but the maximum is {_KEPT}: shorten the prefix"
    return None


def split_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and prefix (without leading and trailing slashes)."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc, parts.path.strip("/")


def folder_for(url: str, root: str | Path) -> Path:
    """The local folder for a URL. The folder is below `root`. Its name is readable, and contains a hash that makes it
    unique."""
    url = url.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", url.partition("://")[2])[-60:].strip("-")
    return Path(root, f"{readable}-{hashlib.blake2b(url.encode(), digest_size=6).hexdigest()}")

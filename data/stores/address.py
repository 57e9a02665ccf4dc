"""URLs of folders in object stores, s3://bucket/prefix: what is wrong with one, and its folder on this machine."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

from data.base.paths import shown

SCHEMES = ("s3", "gs")
"""Of the stores that checkpoints and exports are written to."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_KEPT = 700
"""Bytes that the prefix may have, so that the names below it fit."""


def url_defect(text: str) -> str | None:
    """Why a URL names no folder in a store, to stand after its key; else None."""
    url = urlsplit(text)
    known = " and ".join(f"{scheme}://" for scheme in SCHEMES)
    if url.scheme not in SCHEMES:
        return f"is {shown(text)}, but the object stores that are supported are {known}: write one of these, or a path"
    if "@" in url.netloc:
        return f"is {shown(text)}, but credentials do not belong there: remove them, and set them in the environment"
    if url.query or url.fragment or _BUCKET.fullmatch(url.netloc) is None:
        return f"is {shown(text)}, but it must be {url.scheme}://BUCKET/PREFIX"
    parts = url.path.strip("/").split("/")
    if any(part in (".", "..") for part in parts) or ("" in parts and parts != [""]) or not text.isprintable():
        return f"is {shown(text)}, but names in a bucket have no empty, . or .. parts: remove them"
    if (n_bytes := len(url.path.encode())) > _KEPT:
        return f"is {shown(text)}, whose prefix has {n_bytes} bytes, but {_KEPT} are the most: shorten it"
    return None


def split_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and prefix (without slashes at its ends)."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc, parts.path.strip("/")


def folder_for(url: str, root: str | Path) -> Path:
    """The folder below root that stands for a URL: a readable name, and a hash that tells it from others."""
    url = url.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", url.partition("://")[2])[-60:].strip("-")
    return Path(root, f"{readable}-{hashlib.blake2b(url.encode(), digest_size=6).hexdigest()}")

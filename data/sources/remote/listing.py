"""Find objects in a store: a single object, the objects that match a pattern, or the objects below a folder.

Raises ConfigError for a store that cannot be read. `key` is the config's key that specifies the address."""

import fnmatch
import re
from pathlib import PurePosixPath

from data.base.errors import ConfigError
from data.sources.remote.objects import ObjectFile, bucket_at
from data.stores.address import url_defect
from data.stores.store import StoreError
from data.stores.stored import StoredObject

_SPECIAL = re.compile(r"[*?\[]")


def is_pattern(address: str) -> bool:
    return _SPECIAL.search(address) is not None


def object_at(key: str, address: str) -> ObjectFile | None:
    """The object with this address; None if it does not exist."""
    bucket, name = _split_address(key, address)
    if not name or name.endswith("/"):
        return None
    try:
        return ObjectFile.of(bucket, bucket_at(bucket).about(name))
    except StoreError as error:
        if error.absent:
            return None
        raise _unreadable(key, address, error) from None


def matching(key: str, address: str) -> list[ObjectFile]:
    """The objects whose addresses match a pattern, sorted. Raises ConfigError if there are none."""
    bucket, pattern = _split_address(key, address)
    fixed = pattern[: pattern.rindex("/", 0, _start(pattern)) + 1] if "/" in pattern[: _start(pattern)] else ""
    parts = pattern.split("/")
    found = [each for each in _listed(key, address, bucket, fixed) if _matches(each.name.split("/"), parts)]
    if not found:
        raise ConfigError(
            f"has {address!r}, but no object matches this pattern: check the pattern (`*` does not match a `/`; `**/` "
            "matches any number of folders)",
            key=key,
        )
    return [ObjectFile.of(bucket, each) for each in found]


def _start(pattern: str) -> int:
    """Index of the first special character."""
    found = _SPECIAL.search(pattern)
    assert found is not None
    return found.start()


def _matches(name: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a name match the parts of a pattern, as in glob.glob: `**` matches any number of folders. A
    name that begins with a dot is only matched by a pattern that begins with a dot."""
    if not pattern or not name:
        return not pattern and not name
    if pattern == ["**"]:
        return not any(part.startswith(".") for part in name)
    if pattern[0] == "**":
        is_shown = not name[0].startswith(".")
        return _matches(name, pattern[1:]) or (is_shown and _matches(name[1:], pattern))
    is_shown = not name[0].startswith(".") or pattern[0].startswith(".")
    return is_shown and fnmatch.fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def objects_below(key: str, address: str) -> dict[PurePosixPath, ObjectFile]:
    """The objects below a folder, by their names relative to the folder, in the order of a local folder. Objects with a
    name that begins with a dot are left out. Raises ConfigError if there are no objects below the folder."""
    bucket, name = _split_address(key, address)
    folder = f"{name.rstrip('/')}/" if name else ""
    found = {each.name.removeprefix(folder): each for each in _listed(key, address, bucket, folder)}
    if not found:
        raise ConfigError(f"has {address!r}, but there is no such object, and there are no objects below it", key=key)
    paths = {PurePosixPath(name): ObjectFile.of(bucket, each) for name, each in found.items()}
    shown = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    return {path: paths[path] for path in sorted(shown, key=lambda path: path.parts)}


def _listed(key: str, address: str, bucket: str, prefix: str) -> list[StoredObject]:
    """The objects whose names begin with the prefix, without the empty objects that represent folders."""
    try:
        return [each for each in bucket_at(bucket).objects(prefix) if not each.name.endswith("/")]
    except StoreError as error:
        raise _unreadable(key, address, error) from None


def _split_address(key: str, address: str) -> tuple[str, str]:
    """The URL of the bucket, and the name of the object or the pattern."""
    scheme, _, place = address.partition("://")
    bucket, _, name = place.partition("/")
    if (defect := url_defect(f"{scheme}://{bucket}")) is not None:
        raise ConfigError(defect, key=key)
    return f"{scheme}://{bucket}", name


def _unreadable(key: str, address: str, error: StoreError) -> ConfigError:
    hint = "start again when the store responds"
    if error.absent:
        hint = "check the name of the bucket"
    elif error.denied:
        hint = "check the credentials, and their permission to list the bucket and to read its objects"
    return ConfigError(f"has {address!r}, but {error}: {hint}", key=key)

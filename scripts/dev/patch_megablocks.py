"""Patches the sources of MegaBlocks 0.10.0 and grouped_gemm 0.3.0, so that they build against torch 2.15 and CUDA 13.

Called by build_megablocks.sh with the folder in which the sources are unpacked. The patched sources also work with
torch 2.7 and CUDA 12.6, so this script does not check versions.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Patch:
    file: str
    needed: str
    """A regular expression for the text to replace, which must match in `places` places."""
    replacement: str
    fixed: str
    """A regular expression that matches in the same number of places after the patch."""
    places: int
    why: str


PATCHES = (
    Patch(
        file="megablocks-0.10.0/csrc/cumsum.h",
        needed=r"stream,\s*debug_synchronous\)\);",
        replacement="stream));",
        fixed=r"stream\)\);",
        places=2,
        why="CUB of CUDA 13 removed the argument debug_synchronous, which CUB of CUDA 12.6 accepts and ignores",
    ),
    Patch(
        file="grouped_gemm-0.3.0/setup.py",
        needed=r'nvcc_flags = \[\s*"-std=c\+\+17",[^\n]*\n',
        replacement="nvcc_flags = [\n",
        fixed=r"nvcc_flags = \[\s*\]",
        places=1,
        why="torch 2.15's headers require C++20; without this flag, torch selects its own standard (2.7: C++17)",
    ),
)


def apply(patch: Patch, folder: Path) -> str:
    """Patch one file in place and return a line that describes the result. Raises ValueError if the file has unexpected
    content."""
    path = folder / patch.file
    if not path.is_file():
        raise ValueError(f"{path} is missing: unpack {patch.file.split('/')[0]}.tar.gz in {folder}")
    text = path.read_text()
    found = len(re.findall(patch.needed, text))
    if found == 0 and len(re.findall(patch.fixed, text)) == patch.places:
        return f"{patch.file}: already patched"
    if found != patch.places:
        name = patch.file.split("/")[0]
        raise ValueError(
            f"{path}: expected {patch.places} matches of /{patch.needed}/, but found {found}: this is not {name}; "
            f"delete {folder} to unpack it again, or update scripts/dev/patch_megablocks.py for the new version"
        )
    path.write_text(re.sub(patch.needed, patch.replacement, text))
    return f"{patch.file}: patched ({patch.why})"


def main(folder: Path) -> int:
    try:
        for patch in PATCHES:
            print(apply(patch, folder))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

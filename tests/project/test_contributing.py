"""CONTRIBUTING.md names files and identifiers that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
# What its examples add.
ADDED = {"train/throughput/clock.py", "tests/throughput/test_clock.py", "tests/sources/test_document_lines.py"}


def test_files_exist() -> None:
    named = set(re.findall(r"`((?:train|data|scripts|tests|yamls)/[\w/.]*)`", TEXT))
    assert len(named) > 25
    assert {name for name in named if not (ROOT / name).exists()} == ADDED


def test_identifiers_are_in_the_files_that_are_named_with_them() -> None:
    pairs = re.findall(r"`([A-Za-z_]+)`\s+(?:in|of|\()\s*`(\w+/[\w/.]+\.py)`", TEXT)
    assert len(pairs) > 10
    missing = [(name, file) for name, file in pairs if name not in (ROOT / file).read_text("utf-8")]
    assert missing == []


def test_names_of_the_examples_exist() -> None:
    for name, file in {
        "def grouped_glu(": "train/models/experts/grouped.py",
        "class Looped": "train/models/experts/torch_loop.py",
        "_WHY_NOT": "train/models/experts/experts.py",
        "MOE_IMPLS": "train/models/experts/experts.py",
        "GROUPED": "train/models/experts/experts.py",
        "def _family(": "train/models/config.py",
        "def row_text(": "data/sources/formats/content.py",
        "callbacks.append(": "train/callbacks/build.py",
        "def open_source(": "data/sources/source.py",
    }.items():
        assert name in (ROOT / file).read_text("utf-8"), file

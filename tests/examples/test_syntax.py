"""The canonical form of source: which changes affect it, and which do not."""

import pytest
import xxhash

from data.examples.syntax import canonical

SOURCE = """
'''A module.'''
import re
LIMIT = 3
def make(row, *, sep=", "):
    '''Joins.'''
    words = [f"{word!r:>{LIMIT}} of {row['n']}" for word in row["words"] if word is not None]
    return {"prompt": sep.join(words), "response": "\\u00e9\\U0001fadc" "x" * -LIMIT}
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'''A module.'''", ""),
        ("Joins.", "Joins the words."),
        ("LIMIT = 3", "LIMIT = 0x3  # words\n'''At most.'''"),
        ('sep=", "', "sep=', '"),
        ("\\u00e9", "é"),
        ("import re\n", "import re\n\n\n"),
    ],
)
def test_changes_without_effect_keep_the_canonical_form(old, new):
    assert old in SOURCE
    assert canonical(SOURCE.replace(old, new)) == canonical(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("3", "4"),
        ("3", "3.0"),
        (", ", ","),
        ("!r", ""),
        (" of ", ""),
        ("is not", "is"),
        ("-LIMIT", "LIMIT"),
        ("*, ", ""),
    ],
)
def test_changes_with_an_effect_change_the_canonical_form(old, new):
    assert old in SOURCE
    assert canonical(SOURCE.replace(old, new)) != canonical(SOURCE)


def test_a_docstring_that_is_read_counts():
    source = "def make(row):\n    'Answer briefly.'\n    return {'prompt': make.__doc__ + row, 'response': row}\n"
    assert canonical(source) != canonical(source.replace("briefly", "at length"))


def test_it_is_the_same_on_every_version_of_python():
    # Computed with Python 3.10, 3.11, 3.12 and 3.13.
    assert xxhash.xxh3_64_hexdigest(canonical(SOURCE)) == "d0117ef248edc71f"


def test_a_tree_of_any_depth_is_read():
    assert canonical(f"x = {' + '.join('1' * 2000)}") != canonical(f"x = {' + '.join('1' * 1999)}")

"""Normalization of Unicode and whitespace."""

import random
import unicodedata
from importlib.util import find_spec

import pytest

from data.base.errors import ConfigError
from data.curation.base.document import KEPT, Document, Verdict
from data.curation.steps.normalize import Normalize
from tests.helpers.missing import skip_or_fail

ALPHABET = [
    *"aA \t\n\n\n\r\r\v\f\x00\x1b\x7f\x85\x9f\xa0\xad",
    *"\u200b\u200c\u200d\u200e\u2028\u2029\u2060\u3000\ufeff\ufffd\uffff\ufdd0",
    *"e\u0301\u0327\u0344é\u1100\u1161\u11a8각\ufb01²½Å\u212b\u2126\u0958\U0001f600\U0001d15e",
]


def judge(text: str, scores: dict[str, float] | None = None, **parameters) -> Verdict:
    return Normalize(**parameters).judge()(Document(1, "web", "a.txt", 0, text, 1, scores or {}))


def normalized(text: str, **parameters) -> str:
    """The normalized text; empty if the document is removed."""
    verdict = judge(text, **parameters)
    return "" if verdict.reason else text if verdict.text is None else verdict.text


def random_texts(n: int) -> list[str]:
    draw = random.Random(3)
    texts = ["".join(draw.choices(ALPHABET, k=draw.randrange(1, 30))) for _ in range(n)]
    return texts + [
        "".join(chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)])) for _ in range(40))
        for _ in range(n)
    ]


def slow(text: str, form: str) -> str:
    for end in ("\r\n", *"\r\v\f\x85\u2028\u2029"):
        text = text.replace(end, "\n")
    removed = "\xad\u200b\u2060\ufeff\ufff9\ufffa\ufffb\ufffe\uffff" + "".join(map(chr, range(0xFDD0, 0xFDF0)))
    text = "".join(c for c in text if c in "\t\n" or (unicodedata.category(c) != "Cc" and c not in removed))
    lines = [line.rstrip() for line in unicodedata.normalize(form, text).split("\n")]
    while lines and not lines[0]:
        del lines[0]
    while lines[1:] and lines[-2:] == ["", ""]:
        del lines[-1]
    kept = [line for number, line in enumerate(lines) if line or any(lines[max(number - 2, 0) : number])]
    return "" if lines == [""] else "\n".join(kept)


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_normalization_equals_slow_code_and_is_idempotent(form):
    for text in random_texts(400):
        once = normalized(text, unicode=form)
        assert once == slow(text, form)
        assert not once or judge(once, unicode=form) == KEPT


def test_each_part_is_idempotent_alone():
    draw = random.Random(4)
    for text in random_texts(200):
        off = {name: False for name in ("line_ends", "invisible", "trailing_whitespace") if draw.random() < 0.5}
        options = dict(off, unicode=draw.choice([None, "NFC", "NFKC"]), max_blank_lines=draw.choice([None, 0, 1, 2]))
        once = normalized(text, **options)
        assert not once or judge(once, **options) == KEPT


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\tif x:\n        return [1,   2]\n\n\nclass A:\n    b = 'ﬁ ² ½ \u2003'\n",
        "    indented first line\nand no newline at the end",
        "می\u200cخواهم 👩\u200d👧 \u200eעברית\u200f क्\u200dष",
        "x\n\n\ny",
        "\ufffd",
    ],
)
def test_clean_text_and_code_are_not_changed(text):
    assert judge(text) == KEPT


@pytest.mark.parametrize(
    ("text", "new", "counts"),
    [
        ("a\r\nb\rc\x0cd", "a\nb\nc\nd", {"line_ends": 3}),
        ("\ufeffa\u200bb\x00", "ab", {"invisible": 3}),
        ("e\u0301\ne\u0301\ne", "é\né\ne", {"unicode": 2}),
        ("e\u200b\u0301", "é", {"invisible": 1, "unicode": 1}),
        ("a \n\tb\t\nc", "a\n\tb\nc", {"trailing_whitespace": 2}),
        ("\n\na\n\n\n\n\nb\n\n", "a\n\n\nb\n", {"blank_lines": 5}),
        ("a\r\n \r\n\r\n\r\n\r\nb", "a\n\n\nb", {"line_ends": 5, "trailing_whitespace": 1, "blank_lines": 2}),
    ],
)
def test_changes_are_counted_by_kind(text, new, counts):
    scores = {f"normalize.{kind}": float(count) for kind, count in counts.items()}
    assert judge(text) == Verdict(text=new, changes=sum(counts.values()), scores=scores)


def test_counts_of_an_earlier_step_are_replaced():
    earlier = {"normalize.unicode": 2.0, "x.y": 1.0}
    assert judge("a ", earlier).scores == {"normalize.unicode": 0.0, "normalize.trailing_whitespace": 1.0}


@pytest.mark.parametrize("text", ["", "\n", " \t\r\n\u200b", "\ufeff"])
def test_a_document_without_text_is_removed(text):
    assert judge(text) == Verdict(reason="normalize.empty", detail="has no text after normalization")


def test_nfkc_is_used_only_on_request():
    assert judge("ﬁ²\u00a0x") == KEPT
    assert normalized("ﬁ²\u00a0x", unicode="NFKC") == "fi2 x"


def test_line_ends_can_be_kept():
    assert judge("a\r\nb\r\n", line_ends=False) == KEPT


@pytest.mark.timeout(30)  # linear time takes less than a second, and quadratic time takes minutes
def test_long_inputs_take_linear_time():
    hard = [
        "e" + "\u0316\u0301" * 100_000,
        " " * 300_000 + "x",
        "\n" * 300_000 + "x",
        "\r" * 300_000,
        "\u200b " * 150_000,
    ]
    assert [judge(text) for text in hard]


def test_a_missing_package_is_an_error_before_the_start(monkeypatch):
    monkeypatch.setattr("data.curation.steps.normalize.find_spec", lambda name: None)
    Normalize().check()
    with pytest.raises(
        ConfigError, match=r"fix_mojibake is true, but the package ftfy is not installed: .*pip install"
    ):
        Normalize(fix_mojibake=True).check()


def test_mojibake_is_repaired():
    if find_spec("ftfy") is None:
        skip_or_fail("ftfy is not installed")
    step = {"fix_mojibake": True}
    Normalize(**step).check()
    verdict = Verdict(text="café\nnaïve ✓\né", changes=2, scores={"normalize.mojibake": 2.0})
    assert judge("cafÃ©\nnaÃ¯ve âœ“\né", **step) == verdict
    assert judge("café “naïve” ﬁ", **step) == KEPT


def test_made_from_has_the_versions_of_the_data():
    assert Normalize().made_from()["unicode_data"] == unicodedata.unidata_version
    assert "ftfy" not in Normalize().made_from()
    assert "ftfy" in Normalize(fix_mojibake=True).made_from()

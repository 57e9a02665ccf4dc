"""Samples side by side, and the differences between two texts."""

import random
from dataclasses import replace

from data.curation.base.report import CUT, Counts, Flow, Sample, StepReport, shortened
from data.curation.page.diff import MOST_PAIRS, Piece, differences
from data.curation.page.samples import MOST_SAMPLES, Cell, changed, compared, n_hidden

STEP = StepReport(
    number=1, name="a", parameters={}, fingerprint="", flows={"web": Flow(before=Counts(), after=Counts())}
)


def sample(text: str, other: str | None = None) -> Sample:
    return Sample(place=f"web: {text}", text=text, other_text=other, other_place=other and f"web: {other}")


def kinds(cells: list[Cell]) -> list[str]:
    return [f"{cell.kind} {cell.place}" for cell in cells]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def marked(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.differs]


def test_a_removed_document_is_beside_its_duplicate_or_a_kept_document() -> None:
    step = replace(STEP, removed=[sample("x"), sample("y", "z"), sample("v")], kept=[sample("k")])
    found = compared(step)
    assert kinds(found.pairs) == ["removed web: x", "kept web: k", "removed web: y", "compared with web: z"]
    assert (kinds(found.removed), kinds(found.kept)) == (["removed web: v"], [])
    found = compared(replace(STEP, kept=[sample("k"), sample("l")]))
    assert (found.pairs, kinds(found.kept)) == ([], ["kept web: k", "kept web: l"])


def test_changes_are_marked_on_both_sides() -> None:
    before, after = changed(replace(STEP, changed=[sample("call <phone> now", "call 030 12 now")]))
    assert (before.kind, marked(before.pieces)) == ("before", ["030 12"])
    assert (after.kind, marked(after.pieces)) == ("after", ["<phone>"])


def test_differences_keep_both_texts() -> None:
    draw = random.Random(0)
    for _ in range(200):
        one, other = ("".join(draw.choices("ab .", k=draw.randrange(12))) for _ in range(2))
        found = differences(one, other)
        assert (text_of(found[0]), text_of(found[1])) == (one, other)
        kept = ["".join(piece.text for piece in pieces if not piece.differs) for pieces in found]
        assert kept[0] == kept[1]


def test_the_cut_end_of_a_text_is_not_a_difference() -> None:
    text = " ".join(str(n) for n in range(2_000))
    before, after = differences(shortened("a removed line\n" + text), shortened(text))
    assert marked(before) == ["a removed line\n"]
    assert marked(after) == []
    assert text_of(after).endswith(CUT)


def test_long_texts_without_common_words_are_marked_as_a_whole() -> None:
    n = int(MOST_PAIRS**0.5) + 1
    before, after = differences(f"start {'.' * n}, end", f"start {';' * n}. end")
    assert marked(before) == ["." * n + ","]
    assert marked(after) == [";" * n + "."]


def test_texts_without_much_in_common_are_not_marked() -> None:
    found = compared(replace(STEP, removed=[sample("one two three", "four five six")]))
    assert [marked(cell.pieces) for cell in found.pairs] == [[], []]


def test_control_characters_are_visible() -> None:
    found = compared(replace(STEP, removed=[sample("a\x00b\x1b\x9b")]))
    assert text_of(found.removed[0].pieces) == "a␀b␛\ufffd"


def test_the_number_of_samples_is_limited() -> None:
    many = replace(STEP, removed=[sample(str(n)) for n in range(MOST_SAMPLES + 7)])
    assert len(compared(many).removed) == MOST_SAMPLES
    assert n_hidden(many) == 7

"""The page about a curation is self-contained and safe, and its tables contain the numbers of the report."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from data.base.errors import ConfigError
from data.curation.base.report import Counts, CurationReport, Flow, Histogram, StepReport
from data.curation.page import charts, tables
from data.curation.page.page import render, write_page
from tests.helpers.browser import CHROMIUM, browse
from tests.helpers.curation_reports import HOSTILE, LONG_WORD, SIZES, example_report
from tests.helpers.page_elements import Elements


@pytest.fixture(scope="module")
def report() -> CurationReport:
    return example_report()


@pytest.fixture(scope="module")
def page(report: CurationReport) -> str:
    return render(report)


def documents(counts: Counts) -> int:
    return counts.documents


def step_of(name: str, report: CurationReport) -> StepReport:
    return next(step for step in report.steps if step.name == name)


def test_nothing_outside_the_page_is_requested(page: str) -> None:
    elements = Elements(page)
    outside = [name for _, attributes in elements.found for name in attributes if name in ("src", "href", "action")]
    assert outside == ["href"]  # the empty icon
    assert not re.search(r"url\(|@import", page.partition("<style>")[2].partition("</style>")[0])


def test_texts_of_documents_are_escaped(page: str) -> None:
    elements = Elements(page)
    assert (elements.count("script"), elements.count("img")) == (3, 0)
    assert elements.text.count(HOSTILE) == 3  # a removed document, and a changed document before and after
    assert LONG_WORD in elements.text


def test_names_are_escaped() -> None:
    hostile = example_report({HOSTILE: 1_000})
    step = replace(hostile.steps[1], name=HOSTILE, reasons={HOSTILE: Counts(documents=1)}, note=HOSTILE)
    elements = Elements(render(replace(hostile, name=HOSTILE, steps=[hostile.steps[0], step])))
    assert (elements.count("script"), elements.count("img")) == (3, 0)


def test_secrets_in_the_config_are_hidden(report: CurationReport) -> None:
    page = render(replace(report, config={"sources": {"web": {"remote": "s3://KEY:hunter22hunter22@bucket/raw"}}}))
    assert "hunter22" not in page


def test_the_funnel_contains_the_numbers_of_every_step(page: str, report: CurationReport) -> None:
    text = Elements(page).text
    for step in report.steps:
        flow = step.total()
        assert f"{step.number} {step.name} {flow.before.documents:,} {flow.after.documents:,} " in text
        assert f"{flow.after.tokens:,}" in text
    quality = step_of("gopher_quality", report)
    assert "step 3 gopher_quality removed 481,887 of 891,154 documents (54.1%)" in text
    for reason, counts in quality.reasons.items():
        share = 100 * counts.documents / 481_887
        assert f"{reason} {counts.documents:,} {counts.tokens:,} {share:.1f}%" in text
    assert "mmlu 14,042 31 0.0022" in text
    n_scored = quality.histograms[0].n_documents
    assert f"The scores are those of {n_scored:,} sampled documents of 891,154." in text


def test_each_source_has_its_numbers_after_each_step(report: CurationReport) -> None:
    table = tables.by_source(report, documents)
    assert table.columns == ["step", "web", "code", "docs"]
    for step, row in zip(report.steps, table.rows, strict=True):
        after = [int(cell.partition(" ")[0].replace(",", "")) for cell in row[1:]]
        assert after == [step.flows[name].after.documents for name in table.columns[1:]]


def test_bars_of_the_funnel_add_up_to_the_documents_of_the_step() -> None:
    many = example_report({f"source {n}": 1_000 * (n + 1) for n in range(12)}, n_steps=20)
    bars, ends = (layer["data"]["values"] for layer in charts.funnel_chart(many, "documents", documents)["layer"])
    for step, end in zip(many.steps, ends, strict=True):
        counts = [bar["count"] for bar in bars if bar["step"] == end["step"]]
        assert sum(counts) == end["end"] == step.total().after.documents
        assert len(counts) == 8  # seven sources, and the others


def test_bars_of_a_histogram_contain_every_document_once(report: CurationReport) -> None:
    for histogram in step_of("gopher_quality", report).histograms:
        values = charts.score_chart(histogram)["layer"][0]["data"]["values"]
        for kind, counts in (("kept", histogram.kept), ("removed", histogram.removed)):
            assert sum(bar["count"] for bar in values if bar["documents"] == kind) == sum(counts)
        assert len(tables.bins(histogram).rows) == len(histogram.kept)


def test_thresholds_are_drawn_if_they_are_between_the_edges() -> None:
    histogram = Histogram(
        score="a.b", edges=[0.0, 1.0, 2.0], kept=[1, 2], removed=[3, 0], n_documents=6, key="low", min=0.5, max=9.0
    )
    layers = charts.score_chart(histogram)["layer"]
    assert [layer["data"]["values"] for layer in layers[1:]] == [[{"limit": 0.5, "text": "min 0.5"}]] * 2
    assert tables.limits(histogram) == "at least 0.5 and at most 9 (low)"
    assert [row[0] for row in tables.bins(histogram).rows] == ["below 1", "1 and above"]


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, ""), (0, 9, "0.0%"), (1, 9_999, "<0.1%"), (9_998, 9_999, ">99.9%"), (9, 9, "100.0%"), (11, 10, "110.0%")],
)
def test_shares_are_not_rounded_to_nothing_or_everything(part: int, whole: int, text: str) -> None:
    assert tables.share(part, whole) == text


def test_specifications_are_valid_vega_lite_documents(report: CurationReport) -> None:
    import altair  # imported here because it takes seconds

    histogram = step_of("gopher_quality", report).histograms[1]
    funnel = charts.funnel_chart(report, "documents", documents)
    costs = charts.time_chart(report), charts.speed_chart(report), charts.size_chart(report)
    for spec in [funnel, *costs, charts.score_chart(histogram)]:
        altair.Chart.from_dict(spec)  # raises for anything that the schema does not allow


def test_a_curation_without_documents_has_a_page() -> None:
    empty = Flow(before=Counts(), after=Counts())
    step = StepReport(number=0, name="read", parameters={}, fingerprint="", flows={"web": empty})
    histogram = Histogram(score="words", edges=[0.0, 1.0], kept=[0], removed=[0], n_documents=0)
    steps = [step, replace(step, number=1, name="sample", flows={}, histograms=[histogram])]
    text = Elements(render(CurationReport(name="a", config={}, steps=steps, output="b", versions={}))).text
    assert "0 read 0 → 0 documents" in text
    assert (
        "no steps" not in Elements(render(CurationReport(name="a", config={}, steps=[], output="b", versions={}))).text
    )


def test_a_page_that_cannot_be_written_is_reported(report: CurationReport, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="specify another folder as output"):
        write_page(report, tmp_path / "missing" / "curation.html")


_OPEN_AND_MEASURE = """<script>
document.querySelectorAll("details.step").forEach((element) => { element.open = true; });
const once = setInterval(() => {
  if (document.documentElement.dataset.ready !== "true" || document.querySelector(".chart:empty")) return;
  clearInterval(once);
  const { scrollWidth, clientWidth } = document.documentElement;
  document.title = scrollWidth > clientWidth ? `${scrollWidth} pixels` : "no horizontal scroll bar";
}, 100);
</script>"""
"""Opens all steps, and stores as title whether the page is wider than the window."""


def with_long_names(report: CurationReport) -> CurationReport:
    word, steps = "x" * 200, []
    for step in report.steps:
        removed = [replace(each, place=word, reason=word, detail=word) for each in step.removed]
        histograms = [replace(each, score=word, key=word) for each in step.histograms]
        reasons = {f"{reason}{word}": counts for reason, counts in step.reasons.items()}
        flows = {f"{name}{word}": flow for name, flow in step.flows.items()}
        names = {"name": step.name + word, "note": word, "parameters": {word: word}}
        steps.append(replace(step, removed=removed, histograms=histograms, reasons=reasons, flows=flows, **names))
    return replace(report, name=word, steps=steps, output=word, versions={word: word})


def with_script(file: Path) -> Path:
    html, closed, rest = file.read_text("utf-8").rpartition("</body>")
    file.write_text(html + _OPEN_AND_MEASURE + closed + rest, "utf-8")
    return file


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_chromium_draws_every_chart(report: CurationReport, tmp_path: Path) -> None:
    write_page(with_long_names(report), tmp_path / "curation.html")
    file = with_script(tmp_path / "curation.html")
    dom, errors = browse(file, "--dump-dom", "--window-size=420,1600", at="#theme=dark&log=1")
    assert errors == []
    drawn = dom.partition("<script")[0].split('data-chart="')[1:]
    assert len(drawn) == 9
    assert all("role-mark" in each for each in drawn)
    assert "<title>no horizontal scroll bar</title>" in dom


@pytest.mark.proof
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400])
@pytest.mark.parametrize("n_steps", [8, 20])
def test_screenshots(n_steps: int, width: int, theme: str, tmp_path: Path) -> None:
    """Write screenshots to pytest's folder (--basetemp) for a visual check."""
    from PIL import Image

    write_page(example_report({**SIZES, "x" * 60: 20_000}, n_steps=n_steps), tmp_path / "curation.html")
    file, picture = with_script(tmp_path / "curation.html"), tmp_path / "curation.png"
    _, errors = browse(file, f"--screenshot={picture}", f"--window-size={width},12000", at=f"#theme={theme}")
    assert errors == []
    image = Image.open(picture).convert("RGB")
    assert image.getpixel((2, 11_998)) == ((20, 23, 27) if theme == "dark" else (255, 255, 255))
    assert {(0, 114, 178), (79, 168, 224)} & {color for _, color in image.getcolors(image.width * image.height) or []}

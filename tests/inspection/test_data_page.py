"""The page about data is self-contained and safe, and its tables contain all of its numbers."""

import dataclasses
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from data.base.durations import Clock
from data.config.dataset import DatasetConfig, StreamConfig
from data.config.loader import DataLoaderConfig, StageConfig
from data.inspection.page import charts, tables
from data.inspection.page.page import Options, Plan, render, write_page
from data.inspection.page.source import InspectedSource, inspect_source
from data.inspection.planned_shares import curves
from data.loading.opening import open_rows
from data.mixing.row_plan import RowPlan
from tests.helpers.browser import CHROMIUM, browse
from tests.helpers.page_elements import Elements
from tests.helpers.toy_tokenizer import ToyTokenizer, dataset_config, questions, write_jsonl

TOY = ToyTokenizer()
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
OPTIONS = Options(title=f"Data of {HOSTILE}", config="run.yaml", seed=17, n_rows=2)
EXAMPLES = [
    *questions(40),
    *[{"prompt": "copied", "response": "three times"}] * 3,
    {"prompt": HOSTILE, "response": HOSTILE},
    {"prompt": "long", "response": "x" * 300},
    {"prompt": "bad"},
]


_MEASURE = """<script>
const once = setInterval(() => {
  if (document.documentElement.dataset.ready !== "true") return;
  clearInterval(once);
  const { scrollWidth, clientWidth } = document.documentElement;
  document.title = scrollWidth > clientWidth ? `${scrollWidth} pixels` : "no horizontal scroll bar";
}, 100);
</script>"""
"""Stores as title whether the page is wider than the window."""


def source(folder: Path, name: str, examples: Sequence[dict], most_rows: int | None = None) -> InspectedSource:
    write_jsonl(folder / name / "train.jsonl", [*examples])
    rows = open_rows(dataset_config(folder / name, max_seq_len=200, on_bad_example="drop"), TOY)
    return inspect_source(name, rows, TOY, most_rows, iter)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[InspectedSource]:
    folder = tmp_path_factory.mktemp("sources")
    return [
        source(folder, "train.a", EXAMPLES),
        source(folder, "train.b", questions(30, start=100)),
        source(folder, "eval", [*questions(10, start=200), EXAMPLES[0], EXAMPLES[40]]),
    ]


@pytest.fixture(scope="module")
def plan(sources: list[InspectedSource]) -> Plan:
    shapes = {each.name.removeprefix("train."): each.rows for each in sources[:2]}
    streams = {name: StreamConfig(local=name, max_repeats=1000.0) for name in shapes}
    ramp = {"from": {"a": 0.8, "b": 0.2}, "to": {"b": 1.0}}
    stages = [
        StageConfig(name="start", duration="10ba", proportions={"a": 0.8, "b": 0.2}),
        StageConfig(name=HOSTILE, duration="10ba", proportions=ramp),
    ]
    dataset = DatasetConfig(streams=streams, max_seq_len=200)
    config = DataLoaderConfig(name="finetuning", dataset=dataset, stages=stages)
    clock = Clock(tokens_per_batch=800, rows_per_batch=4, rows_per_epoch=100).until("20ba")
    return Plan(rows=RowPlan(config, shapes, clock, seed=0), clock=clock)


@pytest.fixture(scope="module")
def page(sources: list[InspectedSource], plan: Plan) -> str:
    return render(OPTIONS, sources, plan, TOY)


def test_nothing_outside_the_page_is_requested(page: str) -> None:
    elements = Elements(page)
    outside = [name for _, attributes in elements.found for name in attributes if name in ("src", "href", "action")]
    assert outside == ["href"]  # the empty icon
    assert "default-src 'none';" in page
    assert not re.search(r"url\(|@import", page.partition("<style>")[2].partition("</style>")[0])


def test_texts_of_records_are_escaped(page: str) -> None:
    elements = Elements(page)
    assert (elements.count("script"), elements.count("img")) == (3, 0)
    assert elements.text.count(HOSTILE) >= 3  # the title, an entry of the oddest documents and its text


def test_the_tables_contain_the_numbers(page: str, sources: list[InspectedSource]) -> None:
    text, first = Elements(page).text, sources[0].survey
    share = f"{first.trained_tokens / first.tokens:.1%}"
    fill = f"{first.tokens / (200 * first.n_rows):.1%}"
    size = f"{sources[0].rows.folder.parent.parent.joinpath('train.jsonl').stat().st_size / 1024:.0f}"
    for expected in (
        f"train.a {first.n_rows} 45 {first.tokens:,} {first.trained_tokens:,} ({share}) {fill} 1.00 1 {size}",
        f"train.a: all {first.n_rows} rows",
        "train.a 46 45 (97.83%) 1 (2.17%) 1 (2.17%)",
        "train.a bad row: response is missing 1 2.17%",
        "start 0 to 10 8,000 80.0% 20.0%",
        "10 to 20 8,000 80.0% → 0.0% 20.0% → 100.0%",
        "and 1 more copiedthree times",
        "train.a 45 2 4.4%",
        "eval train.a 12 2 16.7%",
        "eval train.b 12 0 0.0%",
        "The rows are drawn at random with seed 17",
    ):
        assert expected in text


def test_a_part_of_the_rows_is_read(tmp_path: Path) -> None:
    part = source(tmp_path, "train", questions(400), most_rows=5)
    page = render(OPTIONS, [part], "max_duration is too long", TOY)
    text, n_rows = Elements(page).text, part.rows.n_rows
    assert f"train: 5 of {n_rows} rows ({5 / n_rows:.1%}), in 5 evenly spaced blocks" in text
    assert "cannot be planned: max_duration is too long" in text
    shown = [int(number) for number in re.findall(r"<h4>row (\d+):", page)]
    assert len(shown) == OPTIONS.n_rows
    assert set(shown) <= set(part.numbers)


def test_unknown_numbers_of_another_program_s_folder_are_estimated(tmp_path: Path) -> None:
    part = source(tmp_path, "train", questions(400), most_rows=5)
    part.rows.mds.manifest = None  # pyright: ignore
    rows = dataclasses.replace(part.rows, tokens=None, trained_tokens=None)
    other = dataclasses.replace(part, rows=rows)
    (cells,) = tables.summary([other]).rows
    n_rows, survey = rows.n_rows, part.survey
    assert cells[1:4] == [f"{n_rows:,}", "unknown", f"about {round(survey.tokens * n_rows / 5):,}"]
    assert cells[5] == f"{survey.tokens / (5 * 200):.1%}"
    assert set(tables.losses([other]).rows[0][1:]) == {"unknown"}


def test_histograms_count_everything_once(sources: list[InspectedSource]) -> None:
    for each in sources:
        lengths, fills = charts.length_bins(each.survey.lengths), charts.fill_bins(each.survey.row_tokens)
        assert sum(count for *_, count in lengths) == each.survey.n_documents
        assert sum(count for *_, count in fills) == each.survey.n_rows
        assert all(low <= high for low, high, _ in lengths)
        assert all(one[1] + 1 == other[0] for one, other in pairwise(lengths))


def test_specifications_are_valid_vega_lite_documents(sources: list[InspectedSource], plan: Plan) -> None:
    import altair  # imported here because it takes seconds

    specs = [charts.length_chart(sources[0]), charts.fill_chart(sources[0])]
    for spec in [*specs, charts.mixture_chart(plan.rows, curves(plan.rows, 20), 20)]:
        altair.Chart.from_dict(spec)  # raises for anything that the schema does not allow


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_chromium_draws_every_chart(sources: list[InspectedSource], plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "data.html"
    write_page(OPTIONS, sources, plan, TOY, file)
    html, closed, rest = file.read_text("utf-8").rpartition("</body>")
    file.write_text(html + _MEASURE + closed + rest, "utf-8")
    dom, errors = browse(file, "--dump-dom", "--window-size=420,1600", at="#theme=dark")
    assert errors == []
    drawn = dom.partition("<script")[0].split('data-chart="')[1:]
    assert len(drawn) == 7
    assert all("role-mark" in each for each in drawn)
    assert "<title>no horizontal scroll bar</title>" in dom


@pytest.mark.proof
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400])
def test_screenshots(sources: list[InspectedSource], plan: Plan, width: int, theme: str, tmp_path: Path) -> None:
    """Write screenshots to pytest's folder (--basetemp) for a visual check."""
    from PIL import Image

    file, picture = tmp_path / "data.html", tmp_path / "data.png"
    write_page(OPTIONS, sources, plan, TOY, file)
    _, errors = browse(file, f"--screenshot={picture}", f"--window-size={width},6000", at=f"#theme={theme}")
    assert errors == []
    image = Image.open(picture).convert("RGB")
    assert image.getpixel((2, 5998)) == ((20, 23, 27) if theme == "dark" else (255, 255, 255))
    assert {(0, 114, 178), (79, 168, 224)} & {color for _, color in image.getcolors(image.width * image.height) or []}

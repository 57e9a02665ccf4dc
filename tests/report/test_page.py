"""The page is self-contained, safe and small, and also shows its numbers as tables."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.page_elements import Elements
from tests.helpers.report_runs import HOSTILE, Shape, write_run
from train.report import experts
from train.report.charts import expert_charts, run_charts, stream_charts
from train.report.page import render
from train.report.reading.metrics import Metrics, Series
from train.report.reading.record import Record
from train.report.reading.run import Run, read_run
from train.report.timeline import timeline_rows, timeline_spec

MB = 1_000_000


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "toy", Shape(mfu=True)))


@pytest.fixture(scope="module")
def page(toy: Run) -> str:
    return render([toy])


def specs(run: Run) -> Iterator[dict[str, Any]]:
    yield from (chart["spec"] for chart in [*run_charts([run]), *stream_charts(run), *expert_charts(run)])
    measured = experts.expert_data(run)
    assert measured is not None
    yield from experts.expert_specs(measured).values()
    yield timeline_spec(timeline_rows(run))


def test_specifications_are_valid_vega_lite_documents(toy: Run) -> None:
    import altair  # imported here because it takes seconds

    shown = list(specs(toy))
    assert len(shown) > 15
    for spec in shown:
        altair.Chart.from_dict({"data": {"name": "rows"}, **spec})  # raises for anything that the schema does not allow


def test_nothing_outside_the_page_is_requested(page: str) -> None:
    elements = Elements(page)
    outside = [
        (tag, name) for tag, attributes in elements.found for name in attributes if name in ("src", "href", "action")
    ]
    assert outside == [("link", "href")]  # the empty icon, without which browsers request one
    assert ("link", {"rel": "icon", "href": "data:,"}) in elements.found
    policy = next(
        each["content"] for tag, each in elements.found if each.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"url\(|@import", page.partition("<style>")[2].partition("</style>")[0])
    assert "vega.github.io/editor" not in page


def test_texts_of_a_run_are_escaped(tmp_path: Path) -> None:
    shape = Shape(name=HOSTILE, streams=(HOSTILE, "code"), text=HOSTILE, steps=60)
    elements = Elements(render([read_run(write_run(tmp_path, shape))]))
    assert (elements.count("script"), elements.count("img")) == (3, 0)
    assert elements.payload["runs"][0]["name"] == HOSTILE
    assert elements.text.count(HOSTILE) >= 3


def test_everything_is_on_the_page_without_javascript(page: str) -> None:
    text = Elements(page).text
    for expected in (
        "finished",
        "step 400 of 400",
        "1 step at which the loss had a spike",
        "1 expert received no tokens",
        "evaluation loss 2.073",  # the last loss: 2 + 4 exp(-4)
        "the run resumes from checkpoints/ep0-ba300",
        "300 optimizer.lr 0.0003 0.0001",
        "dropped: longer than max_seq_len 7",
        "fcc31de01234 on main, with uncommitted changes",
        "torch 2.15.0",
        "Experts are the router sends each token (400)",
        "training 8m00s 78.4%",
    ):
        assert expected in text


def test_two_runs_share_their_axes(toy: Run, tmp_path: Path) -> None:
    other = read_run(write_run(tmp_path, Shape(name="other", lr=1e-3, seed=1, resumed=False)))
    elements = Elements(render([toy, other]))
    charts = elements.payload["charts"]
    assert [line["label"] for line in charts["loss"]["lines"]] == ["toy", "other"]
    assert [line["run"] for line in charts["eval"]["lines"]] == [0, 1]
    assert [line["label"] for line in charts["mfu"]["lines"]] == ["toy"]  # the other run has no value
    assert "key toy other run_name toy other optimizer.lr 0.0001 0.001" in elements.text


def test_twenty_runs_have_twenty_kinds_of_lines(toy: Run) -> None:
    runs = [Run(**{**vars(toy), "name": f"run {number}"}) for number in range(20)]
    loss = next(chart for chart in run_charts(runs) if chart["key"] == "loss")
    (line,) = [layer["encoding"] for layer in loss["spec"]["layer"] if layer["mark"]["type"] == "line"]
    colors, dashes = (line[channel]["scale"]["range"] for channel in ("color", "strokeDash"))
    assert len({(color, *dash) for color, dash in zip(colors, dashes, strict=True)}) == 20


@pytest.mark.parametrize("missing", ["metrics/eval/", "experts/", "streams/", "throughput/", "seconds/", "loss/", "lr"])
def test_a_run_with_few_metrics(missing: str, toy: Run) -> None:
    series = {name: each for name, each in toy.metrics.series.items() if not name.startswith(missing)}
    metrics = Metrics(**{**vars(toy.metrics), "series": series})
    run = Run(**{**vars(toy), "metrics": metrics, "record": Record(entries=[])})
    payload = Elements(render([run])).payload
    drawn = [line["metric"] for chart in payload["charts"].values() for line in chart["lines"]]
    assert drawn
    assert not [name for name in drawn if name.startswith(missing)]


def test_a_run_without_a_single_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    page = render([read_run(tmp_path)])
    assert Elements(page).payload["charts"] == {}
    assert "No step has been logged yet." in page
    assert "may have been killed" not in page


def test_the_report_of_a_week_stays_within_the_limits(page: str, toy: Run) -> None:
    steps = np.arange(1, 60_001)
    measured, layers = steps[99::100], [f"experts/layer_{layer}" for layer in range(40)]
    per_stream = ("loss", "tokens", "token_share", "planned_token_share")
    dense = [*toy.metrics.series, *(f"streams/{number}/{name}" for number in range(12) for name in per_stream)]
    loads = [f"{layer}/load/expert_{expert}" for layer in layers for expert in range(16)]
    sparse = [*loads, *(f"{layer}/{name}" for layer in layers for name in experts.LAYER_METRICS)]
    series = {name: Series(steps=steps, values=np.random.normal(size=len(steps))) for name in dense}
    series |= {name: Series(steps=measured, values=np.random.normal(size=len(measured))) for name in sparse}
    times = 1.79e9 + steps * 10.0
    metrics = Metrics(steps=steps, tokens=steps * 4096, times=times, series=series, pauses=[], unreadable=0)
    week = Run(**{**vars(toy), "metrics": metrics})
    assert len(page) < 2 * MB
    assert len(page) < len(render([week])) < 5 * MB

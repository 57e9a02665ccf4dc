"""The tables on the console, and the warning about a step that has removed most of its documents."""

from dataclasses import replace

from rich.console import Console

from data.curation.base.report import Counts, CurationReport
from data.curation.page.console import print_tables, summary_line
from data.curation.page.warnings import warning_lines
from tests.helpers.curation_reports import example_report


def printed(report: CurationReport, *, by_source: bool = False) -> str:
    console = Console(width=120, highlight=False)
    with console.capture() as capture:
        print_tables(report, by_source=by_source, console=console)
    return " ".join(capture.get().replace("│", " ").split())


def test_every_step_is_printed_with_its_numbers() -> None:
    report = example_report()
    text = printed(report)
    for step in report.steps:
        before, after = step.total().before, step.total().after
        assert f"{step.number} {step.name} {before.documents:,} {after.documents:,} " in text
    assert "3 gopher_quality 891,154 409,267 45.9% 347,029,220 5m18s" in text
    assert "gopher.min_stop_words 212,033 23.8%" in text
    assert "2 other reasons 53,006 5.9%" in text
    assert "mmlu 14,042 31 0.0022" in text
    assert text.endswith(summary_line(report))


def test_sources_are_printed_on_request() -> None:
    report = example_report()
    line = "web 716,537 305,245 42.6% 195,356,800"
    assert line in printed(report, by_source=True)
    assert line not in printed(report)


def test_brackets_in_names_are_not_markup() -> None:
    report = example_report({"[red]web[/red]": 1_000})
    steps = [replace(report.steps[0], name="[bold]\x1b[2J")]
    text = printed(replace(report, steps=steps), by_source=True)
    assert "0 [bold]␛[2J 1,000" in text
    assert "[red]web[/red] 1,000" in text


def test_a_step_that_removes_more_than_half_causes_a_warning_with_samples() -> None:
    steps = {step.name: step for step in example_report().steps}
    first, *samples = warning_lines(steps["gopher_quality"])
    assert first.startswith("step 3 gopher_quality removed 481,887 of 891,154 documents (54.1%)")
    assert first.endswith("gopher.min_stop_words (212,033)")
    assert [line.partition(": gopher")[0] for line in samples] == [
        f"  web: raw/web.jsonl.gz:{line}" for line in (1000, 1037, 1074)
    ]
    assert all(len(line) < 300 for line in samples)
    assert warning_lines(steps["exact_duplicates"]) == []


def test_half_of_the_documents_is_not_a_warning() -> None:
    step = next(step for step in example_report({"web": 1_000}).steps if step.name == "sample")
    assert step.total().after.documents * 2 >= step.total().before.documents
    assert warning_lines(step) == []


def test_a_source_of_which_nothing_remains_causes_a_warning() -> None:
    step = next(step for step in example_report({"web": 1_000, "books": 10}).steps if step.name == "sample")
    flow = step.flows["books"]
    step = replace(step, flows={**step.flows, "books": replace(flow, after=Counts())})
    *_, line = warning_lines(step)
    assert line.endswith("sample removed all documents of books")

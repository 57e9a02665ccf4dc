"""Where reports are written; a failing report does not affect its run."""

from pathlib import Path

import pytest

from data.base.errors import ConfigError
from tests.helpers.load_script import load_script
from tests.helpers.report_runs import Shape, write_run
from train.report import report
from train.report.report import write_report

SHORT = Shape(steps=12, resumed=False)


def test_a_report_goes_into_the_log_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine" / "checkpoints", SHORT)
    assert write_report([tmp_path / "mine"]) == folder / "report.html"
    assert {path.name for path in folder.iterdir()} == {"metrics.jsonl", "record.jsonl", "report.html"}


def test_a_report_of_several_runs_goes_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [write_run(tmp_path / name, SHORT) for name in ("a", "b")]
    assert write_report(folders) == Path("report-toy-toy_2_.html")
    assert "toy (2)" in Path("report-toy-toy_2_.html").read_text()


@pytest.mark.parametrize("output", [".", "none/report.html"])
def test_an_output_that_cannot_be_written_is_one_error(output: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SHORT)
    with pytest.raises(ConfigError, match="--output"):
        write_report([folder], tmp_path / output)
    assert not list(tmp_path.glob(".part-*"))


def test_the_script_prints_the_place_or_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("report")
    assert script.main([str(write_run(tmp_path / "run", SHORT)), "--output", str(tmp_path / "x.html")]) == 0
    assert script.main([str(tmp_path / "nothing")]) == 2
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'x.html'}\n"
    assert (
        printed.err == f"error: {tmp_path / 'nothing'} does not exist: specify the save_folder or log_folder of a run\n"
    )


@pytest.mark.usefixtures("reports")
def test_a_report_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    write_run(tmp_path, SHORT)
    monkeypatch.setattr(report, "write_page", fail)
    report.report_at_end(tmp_path)
    assert capsys.readouterr().out == "warning: the report could not be written: ZeroDivisionError('a bug')\n"


@pytest.mark.usefixtures("reports")
def test_a_run_without_a_step_has_no_report(tmp_path: Path) -> None:
    report.report_at_end(tmp_path)
    assert list(tmp_path.iterdir()) == []

"""Runs in tests write a report only if the test requests it. There are hundreds of runs, and a report takes a quarter
of a second."""

from train.report import report

_report_at_end = report.report_at_end


def reports_at_end(wanted: bool) -> None:
    """Turn reports on or off in this process and in processes forked from it later."""
    report.report_at_end = _report_at_end if wanted else lambda folder: None

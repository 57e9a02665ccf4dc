"""Runs of tests end without their report, unless a test asks for it: they are hundreds, a quarter of a second each."""

from train.report import report

_report_at_end = report.report_at_end


def reports_at_end(wanted: bool) -> None:
    """From here on, in this process and in those that it forks."""
    report.report_at_end = _report_at_end if wanted else lambda folder: None

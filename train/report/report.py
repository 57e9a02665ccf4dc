"""Write a report about the runs at given paths, or about a run when it ends."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.base.console import logger
from data.base.errors import ConfigError
from data.base.paths import refuse_path
from train.checkpoint.save_folder import METRICS, REPORT
from train.report.page import write_page
from train.report.reading.run import Run, read_run


def write_report(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Write a page about the runs at these paths, and return the path of the page. For one run, the default output is
    report.html in the log folder of the run. For several runs, the default output is a file in the working directory
    that is named after the runs. Raises ConfigError if a run cannot be read or the page cannot be written."""
    if output is not None:
        refuse_path("--output", str(output))
        if output.is_dir():
            raise ConfigError(f"--output is {str(output)!r}, which is a folder: specify a file, such as report.html")
    runs = _with_unique_names([read_run(path) for path in paths])
    if output is None:
        names = "-".join(re.sub(r"[^\w.-]+", "_", run.name) for run in runs)
        output = runs[0].files.folder / REPORT if len(runs) == 1 else Path(f"report-{names[:100]}.html")
    write_page(runs, output)
    return output


def _with_unique_names(runs: Sequence[Run]) -> list[Run]:
    """Append a number to repeated names of runs, so that all names are unique."""
    seen, named = Counter[str](), list[Run]()
    for run in runs:
        seen[run.name] += 1
        number = seen[run.name]
        named.append(run if number == 1 else replace(run, name=f"{run.name} ({number})"))
    return named


def report_at_end(folder: Path) -> None:
    """Write the report of a run that has ended into its log folder, if the run has trained a step. Errors are only
    logged, so that they do not change the exit code of the run. Must be called on one rank only."""
    if not (folder / METRICS).is_file():
        return
    try:
        write_report([folder])
    except Exception as error:
        logger.warning(f"the report could not be written: {error!r}")

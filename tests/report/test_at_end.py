"""A real run writes its report when it ends, successfully or not."""

from pathlib import Path

import pytest
from composer.core import Callback, State
from composer.loggers import Logger

from tests.helpers.ranks import run_ranks
from tests.helpers.reports import reports_at_end
from tests.helpers.toy_run import write_toy_run
from train.config.load import read_config
from train.run.fit import fit


class Failing(Callback):
    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 5:
            raise ZeroDivisionError("planted")


def fail_then_finish(path: str) -> list[str]:
    """Return the report of a failed run, and of the same run after a resume with another learning rate."""
    reports_at_end(True)
    report = Path(path).parent / "toy" / "report.html"
    with pytest.raises(ZeroDivisionError):
        fit(read_config(path), callbacks=[Failing()])
    failed = report.read_text("utf-8")
    fit(read_config(path, ["autoresume=true", "optimizer.lr=1e-3"]))
    return [failed, report.read_text("utf-8")]


@pytest.mark.ranks
def test_a_run_ends_with_its_report(tmp_path: Path) -> None:
    ((failed, finished),) = run_ranks(fail_then_finish, 1, write_toy_run(tmp_path))
    assert '<p class="state failed">failed</p>' in failed
    assert "The run has failed: ZeroDivisionError: planted" in failed
    assert '<p class="state finished">finished</p>' in finished
    assert "<td>optimizer.lr</td><td>0.003</td><td>0.001</td>" in finished

"""Faults: ranks and data loader workers that are stopped or killed, and errors that are raised on a single rank."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from data.base.errors import DataError
from scripts.bench.faults.injected import KILL, STOP, fail, in_batch, in_worker, send
from scripts.bench.faults.processes import Ended
from scripts.bench.faults.runs import SAME, Case, Lab

_DEFECT, _FIXABLE, _HUNG = 1, 2, 4
"""The exit codes of train.py for a defect, for an error that the user can fix, and for a hang."""
_RANKS = 2
_WITHIN = 30.0
"""Maximum number of seconds between the end of the first rank and the end of the last rank."""
_NAMED = "cause named, all ranks ended within 30 s, same model after resume"
_ONCE = "reported once, all ranks ended within 30 s, same model after resume"
_DEADLINES = "deadlines={multiple: null, step: 5, data: 5, setup: 60}"
_MESSAGE = "the fault of rank 1"


def _hang(hook: Callable[[], None], names: tuple[str, ...], code: int, lab: Lab) -> Iterator[str]:
    """Run with a fault that stops or kills a process, then resume the run. `code` is the expected exit code of the
    ranks that are not killed."""
    run = lab.new() / "run"
    overrides = () if code == _HUNG else ("train_loader.num_workers=1",)
    ended = lab.resume(run, _DEADLINES, *overrides, ranks=_RANKS, hook=hook, others_seconds=_WITHIN)
    seen = _failed(ended, code)
    if seen is None and not all(name in ended.text for name in names):
        seen = "cause not named"
    if seen is None:
        again = lab.outcome(lab.resume(run, ranks=_RANKS), run, ranks=_RANKS)
        seen = _NAMED if again == SAME else f"after resume: {again}"
    yield seen


def _failed(ended: Ended, code: int) -> str | None:
    """Return None if the run failed on all ranks in time, otherwise a description of the unexpected outcome."""
    if ended.code is None:
        return "did not end"
    if ended.code == 0:
        return "not noticed"
    if code not in ended.codes or not {*ended.codes} <= {code, _HUNG, -KILL}:
        return f"exit codes {ended.codes}"
    if ended.crashed and code != _DEFECT:
        return "a traceback"
    return None if ended.seconds < _WITHIN else f"a rank ended {ended.seconds:.0f} s after the first"


def _raises(error: Exception, code: int, lab: Lab) -> Iterator[str]:
    """Run with an error that only rank 1 raises, then resume the run without the error."""
    run = lab.new() / "run"
    hook = partial(in_batch, [1], partial(fail, error))
    ended = lab.resume(run, _DEADLINES, ranks=_RANKS, hook=hook, others_seconds=_WITHIN)
    seen = _failed(ended, code)
    if seen is None and ended.text.count(_MESSAGE) != 1:
        seen = f"reported {ended.text.count(_MESSAGE)} times"
    if seen is None:
        again = lab.outcome(lab.resume(run, ranks=_RANKS), run, ranks=_RANKS)
        seen = _ONCE if again == SAME else f"after resume: {again}"
    yield seen


_FAULTS = {
    "one rank stopped": (partial(in_batch, [1], partial(send, STOP)), ("rank 1",), _HUNG),
    "rank 0 stopped": (partial(in_batch, [0], partial(send, STOP)), ("rank 0",), _HUNG),
    "one rank killed": (partial(in_batch, [1], partial(send, KILL)), ("rank 1",), _HUNG),
    "a loader worker stopped": (partial(in_worker, [1], STOP), ("worker", "rank 1"), _FIXABLE),
    "a loader worker killed": (partial(in_worker, [1], KILL), ("worker", "rank 1"), _FIXABLE),
}

CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        *(Case(name, _NAMED, partial(_hang, *what)) for name, what in _FAULTS.items()),
        Case("a rank that raises a data error", _ONCE, partial(_raises, DataError(_MESSAGE), _FIXABLE)),
        Case("a rank that raises an unexpected error", _ONCE, partial(_raises, RuntimeError(_MESSAGE), _DEFECT)),
    )
}

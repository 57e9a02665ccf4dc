"""Faults: losses and gradients that are not finite, loss spikes, and experts that get all tokens or no tokens."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from scripts.bench.faults.injected import BATCH, bad_gradient, dead_expert, one_expert, scaled_loss
from scripts.bench.faults.processes import Ended, run
from scripts.bench.faults.runs import SAME, Case, Lab, refusal

_UNSTABLE = 3
"""The exit code of train.py for unstable runs."""
_RANKS = 2
_STOPPED = "stopped, cause named, earlier state saved, same model after resume"
_STOPPED_FINITE = "stopped, cause named, checkpoints finite"
_SKIPPED_FINITE = "steps skipped, checkpoints finite"
_SKIPPED = "step skipped and reported, model finite"
_END = 80
_SPIKE = range(40, 70)
"""The batches, in a longer run, whose loss is multiplied by a factor."""
_PLANNED = ("start", "stage", "saved", "end")
"""The events that a run records even without a fault."""
Hook = Callable[[], None]


def _stop(hook: Hook, what: str, lab: Lab) -> Iterator[str]:
    """Inject the fault into a run with `on_nonfinite: stop`, then resume the run without the fault."""
    run_folder = lab.new() / "run"
    ended = lab.resume(run_folder, ranks=_RANKS, hook=hook)
    seen = _stopped(ended, what)
    if seen is None and not (run_folder / f"ep0-ba{BATCH}").exists():
        seen = "earlier state not saved"
    if seen is None:
        again = lab.outcome(lab.resume(run_folder, ranks=_RANKS), run_folder, ranks=_RANKS)
        seen = _STOPPED if again == SAME else f"after resume: {again}"
    yield seen


def _stopped(ended: Ended, *names: str) -> str | None:
    """Return None if the run stopped on all ranks and its output contains each of `names`, otherwise a description of
    the unexpected outcome."""
    if ended.code is None or ended.crashed:
        return refusal(ended)
    if set(ended.codes) != {_UNSTABLE}:
        return f"exit codes {ended.codes}"
    return None if all(name in ended.text for name in names) else "stopped, cause not named"


def _skip(hook: Hook, what: str, lab: Lab) -> Iterator[str]:
    run_folder = lab.new() / "run"
    ended = lab.resume(run_folder, "on_nonfinite=skip", ranks=_RANKS, hook=hook)
    if (seen := refusal(ended)) is not None:
        yield seen
    elif what not in ended.text or [line["batch"] for line in _events(run_folder)] != [BATCH]:
        yield f"not reported: {_events(run_folder)}"
    else:
        yield _SKIPPED if _is_finite(lab, run_folder) else "another model"


def _events(run_folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_folder / "record.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") not in (None, *_PLANNED)]


def _is_finite(lab: Lab, run_folder: Path) -> bool:
    """Whether every tensor of the newest checkpoint's export is finite."""
    from safetensors.torch import load_file

    output = lab.new() / "hf"
    ended = lab.export(run_folder, output)
    files = sorted(output.glob("*.safetensors"))
    return ended.code == 0 and all(tensor.isfinite().all() for file in files for tensor in load_file(file).values())


def _lr(policy: str, lab: Lab) -> Iterator[str]:
    """Train with a learning rate that is too high for training to converge."""
    run_folder = lab.new() / "run"
    ended = lab.resume(run_folder, "optimizer.lr=1e6", f"on_nonfinite={policy}", ranks=_RANKS)
    if policy == "stop":
        seen = _stopped(ended, "is not finite")
    else:
        seen = refusal(ended) or (None if _events(run_folder) else "not reported")
    if seen is None and not _is_finite(lab, run_folder):
        seen = "a checkpoint that is not finite"
    yield seen or (_STOPPED_FINITE if policy == "stop" else _SKIPPED_FINITE)


def _spike(policy: str, lab: Lab) -> Iterator[str]:
    """Multiply the loss by 25 for 30 steps of a longer run. The outcome lists the events and their batches."""
    run_folder = lab.new() / "run"
    hook = partial(scaled_loss, range(_RANKS), 25.0, _SPIKE.start, len(_SPIKE))
    flags = (f"on_spike={policy}", "spikes={window: 32, min_steps: 16}")
    ended = _long(lab, run_folder, _END, hook, *flags)
    finite = ended.code == 0 and _is_finite(lab, run_folder)
    yield refusal(ended) or _listed(run_folder) + ("" if finite else ", not finite")


def _long(lab: Lab, run_folder: Path, batches: int, hook: Hook, *overrides: str) -> Ended:
    flags = (
        *(f"save_folder={run_folder}", f"max_duration={batches}ba", "save_interval=20ba"),
        "train_loader.dataset.max_repeats=9",
    )
    return run("train.py", lab.config, *flags, *overrides, ranks=_RANKS, hook=hook)


def _listed(run_folder: Path) -> str:
    return ", ".join(f"{line['event']} at {line['batch']}" for line in _events(run_folder))


def _expert(hook: Hook, lab: Lab) -> Iterator[str]:
    run_folder = lab.new() / "run"
    ended = _long(lab, run_folder, 16, hook, "experts.dead_steps=12")
    yield refusal(ended) or _listed(run_folder) or "not reported"


_NAN, _INF = float("nan"), float("inf")
_FAULTS: Mapping[str, tuple[Hook, str]] = {
    "NaN in the loss, all ranks": (partial(scaled_loss, range(_RANKS), _NAN), "loss"),
    "NaN in the loss, one rank": (partial(scaled_loss, [1], _NAN), "loss"),
    "inf in a gradient, all ranks": (partial(bad_gradient, range(_RANKS), _INF), "gradient"),
    "inf in a gradient, one rank": (partial(bad_gradient, [1], _INF), "gradient"),
}

_SPIKES = {
    "log": "spike at 40, spike_end at 70",
    "skip": "spike at 40, spike_end at 70",
    "rollback": "rollback at 40, spike_end at 70",
}

CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        *(
            Case(f"{name}, on_nonfinite: {policy}", expected, partial(trials, *what))
            for name, what in _FAULTS.items()
            for policy, expected, trials in (("stop", _STOPPED, _stop), ("skip", _SKIPPED, _skip))
        ),
        Case("learning rate 1e6, on_nonfinite: stop", _STOPPED_FINITE, partial(_lr, "stop")),
        Case("learning rate 1e6, on_nonfinite: skip", _SKIPPED_FINITE, partial(_lr, "skip")),
        *(
            Case(f"25 times the loss for 30 steps, on_spike: {policy}", expected, partial(_spike, policy))
            for policy, expected in _SPIKES.items()
        ),
        Case("one expert gets all tokens", "expert_collapse at 9", partial(_expert, one_expert)),
        Case("an expert gets no tokens", "expert_dead at 11", partial(_expert, dead_expert)),
    )
}

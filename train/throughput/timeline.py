"""The time of profiled steps by category of device activity, computed from a trace of torch.profiler."""

import gzip
import heapq
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

ATTENTION, EXPERTS, BATCH = "dropless::attention", "dropless::experts", "dropless::batch"
"""Names of ranges that set the category of the operations within them. BATCH: forward and backward of a step, which
Composer runs within the optimizer's step."""
CATEGORIES: tuple[str, ...] = (
    "experts",
    "attention",
    "other GEMMs",
    "optimizer",
    "other operations",
    "collectives",
    "data",
    "idle",
)
"""experts and attention: forward and backward, including their GEMMs. collectives: only the time during which nothing
is computed. data: waiting for data. idle: all other time, for example while only Python code runs."""
_OTHER = "other operations"
_BY_RANGE = {ATTENTION: "attention", EXPERTS: "experts", BATCH: _OTHER}
_COLLECTIVE = re.compile(r"(c10d::|_c10d_functional::|gloo:|nccl)", re.IGNORECASE)
_GEMM = re.compile(r"aten::(mm|addmm|bmm|baddbmm|linear|matmul|einsum|_?grouped_mm|_scaled_mm|linear_backward)$")
_BACKWARD = "autograd::engine::evaluate_function"
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")


class Slice(NamedTuple):
    start: float
    end: float
    priority: int
    """While slices overlap, only the slice with the highest priority is counted."""
    category: str


@dataclass(frozen=True, kw_only=True)
class Timeline:
    steps: int
    seconds: Mapping[str, float]
    """Seconds of all steps by category. Their sum is the total time of the steps."""


class _Operation(NamedTuple):
    end: float
    category: str
    of_backward: bool
    """Whether the operation is a backward operation that has the category of its forward operation, or is a part of
    such a backward operation."""


def read_timeline(trace: Path) -> Timeline:
    """Read the trace file (.json.gz) of a rank, which must contain at least one complete step."""
    with gzip.open(trace) as file:
        return timeline(json.load(file)["traceEvents"])


def timeline(events: Iterable[Mapping[str, Any]]) -> Timeline:
    """Compute the timeline. events: the events of a Chrome trace, with times in microseconds."""
    ordered = sorted((each for each in events if each.get("ph") == "X"), key=lambda each: (each["ts"], -each["dur"]))
    steps = [each for each in ordered if each["name"].startswith("ProfilerStep#") and each["cat"] == "user_annotation"]
    start, end, main = steps[0]["ts"], steps[-1]["ts"] + steps[-1]["dur"], steps[0]["tid"]
    slices = _slices(ordered, main)
    seconds = {name: microseconds / 1e6 for name, microseconds in _partition(slices, start, end).items()}
    return Timeline(steps=len(steps), seconds=seconds)


def _slices(ordered: Sequence[Mapping[str, Any]], main: int) -> list[Slice]:
    """Slices of the GPU if it was used, otherwise of the main thread. Slices for waiting for data and, without a GPU,
    for collectives are included with lower priority."""
    operations = _Operations(ordered)
    device, host, below = list[Slice](), list[Slice](), list[Slice]()
    for event in ordered:
        start, end = event["ts"], event["ts"] + event["dur"]
        if event["cat"] in _ON_DEVICE:
            category = _kernel_category(event, operations.launched)
            device.append(Slice(start, end, 1 if category == "collectives" else 2, category))
        elif (found := operations.found.get(id(event))) is not None:
            depth, category = found
            if event["tid"] == main:
                # In a range without its own category, the time between operations is time in which Python code runs.
                is_range = event["cat"] == "user_annotation" and category == _OTHER
                host.append(Slice(start, end, 3 + depth, "idle" if is_range else category))
            if (category == "data" and event["tid"] == main) or (category == "collectives" and event["tid"] != main):
                below.append(Slice(start, end, 0, category))
    if device:
        return [*device, *(each for each in below if each.category == "data")]
    return [*host, *below]


def _kernel_category(event: Mapping[str, Any], launched: Mapping[int, str]) -> str:
    if _COLLECTIVE.match(event["name"]):
        return "collectives"
    return launched.get(event["args"].get("correlation"), _OTHER)


class _Operations:
    """The category of each host operation, and of the kernels that it launches on the device."""

    def __init__(self, ordered: Sequence[Mapping[str, Any]]) -> None:
        self.found: dict[int, tuple[int, str]] = {}
        """Maps the id of an event to its nesting depth and its category."""
        self.launched: dict[int, str] = {}
        """Maps the correlation id of a kernel launch to the category of the operation that launched the kernel."""
        threads = [number for each in ordered if (number := each.get("args", {}).get("Fwd thread id", 0))]
        self._main_thread = min(threads, default=0)
        self._forward: dict[tuple[int | None, int | None], str] = {}
        """Maps the thread and the sequence number of a forward operation to its category."""
        self._main: int | None = None
        stacks: dict[int, list[_Operation]] = defaultdict(list)
        for event in ordered:
            if event["cat"] in ("cpu_op", "user_annotation", *_LAUNCHES):
                self._add(event, stacks[event["tid"]])

    def _add(self, event: Mapping[str, Any], stack: list[_Operation]) -> None:
        if event["name"].startswith("ProfilerStep#"):
            self._main = event["tid"]
            return
        while stack and stack[-1].end <= event["ts"]:
            stack.pop()
        outer = stack[-1] if stack else None
        if event["cat"] in _LAUNCHES:
            self.launched[event["args"].get("correlation")] = outer.category if outer else _OTHER
            return
        operation = self._categorized(event, outer)
        self.found[id(event)] = len(stack), operation.category
        stack.append(operation)

    def _categorized(self, event: Mapping[str, Any], outer: _Operation | None) -> _Operation:
        name, args = event["name"], event.get("args", {})
        end, number, thread = event["ts"] + event["dur"], args.get("Sequence number"), args.get("Fwd thread id", 0)
        is_forward = number is not None and thread == 0
        if is_forward and outer is not None and outer.of_backward:
            # Recomputed operations do not belong to the backward operation that triggers the recomputation.
            outer = None
        own, of_backward = _own_category(name), False
        if own is None and name.startswith(_BACKWARD):
            found = self._forward.get((self._main if thread == self._main_thread else event["tid"], number))
            own, of_backward = (found, True) if found in ("attention", "experts") else (None, False)
        if outer is not None and outer.category != _OTHER and own not in ("collectives", *_BY_RANGE.values()):
            own, of_backward = outer.category, outer.of_backward
        operation = _Operation(end, own or _OTHER, of_backward)
        if is_forward:
            # If several operations have the same sequence number, the backward operation with this number belongs to
            # the last of them.
            self._forward[event["tid"], number] = operation.category
        return operation


def _own_category(name: str) -> str | None:
    """The category that follows from an operation's name, or None."""
    if name in _BY_RANGE:
        return _BY_RANGE[name]
    if _COLLECTIVE.match(name):
        return "collectives"
    if name.startswith("Optimizer."):
        return "optimizer"
    if name.startswith("enumerate(DataLoader)"):
        return "data"
    return "other GEMMs" if _GEMM.match(name) else None


def _partition(slices: Sequence[Slice], start: float, end: float) -> dict[str, float]:
    """Seconds of each category between start and end. At each moment, only one slice is counted."""
    taken = dict.fromkeys(CATEGORIES, 0.0)
    coming = sorted((each for each in slices if each.end > start and each.start < end), key=lambda each: each.start)
    edges = sorted({start, end, *(edge for each in coming for edge in each[:2] if start < edge < end)})
    active: list[tuple[int, float, str]] = []
    number = 0
    for left, right in pairwise(edges):
        while number < len(coming) and coming[number].start <= left:
            heapq.heappush(active, (-coming[number].priority, coming[number].end, coming[number].category))
            number += 1
        while active and active[0][1] <= left:
            heapq.heappop(active)
        category = active[0][2] if active else "idle"
        if category == "idle":
            category = next((name for priority, until, name in active if priority == 0 and until > left), category)
        taken[category] += right - left
    return taken


def table(found: Timeline, title: str) -> str:
    """Return a table of the categories as text, for the console and for a file."""
    whole = sum(found.seconds.values())
    rows = [(name, found.seconds[name]) for name in CATEGORIES]
    lines = [f"{title}: {1e3 * whole / found.steps:.1f} ms per step", f"  {'':18}{'ms per step':>12}{'share':>9}"]
    lines += [f"  {name:18}{1e3 * took / found.steps:12.2f}{took / whole:9.1%}" for name, took in rows]
    return "\n".join(lines)

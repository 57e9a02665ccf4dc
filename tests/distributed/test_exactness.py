"""Whole steps on every mesh against one rank that computes them without splitting; the largest differences as a table.

In fp64, except that torch's grouped GEMM computes in fp32. `pytest -m proof tests/distributed/test_exactness.py` prints
the table; test_step.py has a smaller matrix without clipping, AdamW and adapters.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import pytest
import torch
from rich.console import Console
from rich.table import Table

from tests.helpers.expert_parallel import HYBRID, MESHES
from tests.helpers.ranks import run_ranks
from tests.helpers.steps import Cut, Trained, differences, train_cuts
from train.config.schema import FSDPConfig

CLIP = 0.05
VARIANTS = {
    "plain": Cut(),
    "clipped": Cut(clip=CLIP),
    "4 microbatches": Cut(microbatches=4),
    "block": Cut(checkpointing="block"),
    "selective": Cut(checkpointing="selective"),
    "moe_recompute": Cut(moe_recompute=True),
    "clipped, 4 microbatches, block": Cut(clip=CLIP, microbatches=4, checkpointing="block"),
    "clipped, 4 microbatches, selective, moe_recompute": Cut(
        clip=CLIP, microbatches=4, checkpointing="selective", moe_recompute=True
    ),
    "AdamW, clipped, 4 microbatches, block": Cut(optimizer="adamw", clip=CLIP, microbatches=4, checkpointing="block"),
    "all tokens to one rank": Cut(on_first=True),
    "all tokens to one rank, 4 microbatches, block": Cut(on_first=True, microbatches=4, checkpointing="block"),
    "LoRA, shared A": Cut(lora="shared A"),
    "LoRA, A per expert": Cut(lora="A per expert"),
    "LoRA, A per expert, 4 microbatches, block": Cut(lora="A per expert", microbatches=4, checkpointing="block"),
    "LoRA over nf4": Cut(lora="over nf4"),
}
MUTANTS = {
    "mutant: without the factor": Cut(microbatches=4, checkpointing="block", mutant="without the factor"),
    "mutant: detached router": Cut(microbatches=4, checkpointing="block", mutant="detached router"),
    "mutant: balanced over each microbatch": Cut(microbatches=4, checkpointing="block", scope="microbatch"),
}
"""Each of these must differ from the reference."""
WITHOUT_EP = {
    "1 rank, FSDP2": (1, FSDPConfig()),
    "2 ranks, DDP": (2, None),
    "2 ranks, FSDP2": (2, FSDPConfig()),
    "4 ranks, FSDP2": (4, FSDPConfig()),
    "2x2 ranks, HSDP": (4, HYBRID),
}


class Key(NamedTuple):
    mesh: str
    impl: str
    variant: str


class Case(NamedTuple):
    size: int
    cut: Cut

    @property
    def reference(self) -> "Case":
        return Case(1, self.cut.reference)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.cut.impl == "grouped_mm" else torch.float64


def bound(key: Key) -> float:
    if key.impl == "grouped_mm":
        return 1e-4
    return 1e-6 if "nf4" in key.variant else 1e-10


def cases() -> dict[Key, Case]:
    every = {
        Key(mesh, impl, variant): Case(size, replace(cut, fsdp=fsdp, impl=impl))
        for (mesh, (size, fsdp)), impl, (variant, cut) in product(
            MESHES.items(), ("torch", "grouped_mm"), VARIANTS.items()
        )
    }
    every |= {
        Key(mesh, "torch", variant): Case(size, replace(cut, fsdp=fsdp))
        for (mesh, (size, fsdp)), (variant, cut) in product(WITHOUT_EP.items(), VARIANTS.items())
        if cut.clip is not None
    }
    return every | {
        Key(mesh, "torch", variant): Case(size, replace(cut, fsdp=fsdp))
        for (mesh, (size, fsdp)), (variant, cut) in product(MESHES.items(), MUTANTS.items())
    }


def trained(wanted: Iterable[Case]) -> dict[Case, Trained]:
    """Train all cases, with one launch per number of ranks and dtype."""
    found: dict[Case, Trained] = {}
    launches: dict[tuple[int, torch.dtype], list[Case]] = {}
    for case in dict.fromkeys(wanted):
        launches.setdefault((case.size, case.dtype), []).append(case)
    for (size, dtype), its in launches.items():
        results = run_ranks(train_cuts, size, [case.cut for case in its], dtype, timeout=60 + 20 * len(its))[0]
        found |= {case: result[dtype] for case, result in zip(its, results, strict=True)}
    return found


def measured(wanted: dict[Key, Case]) -> dict[Key, dict[str, float]]:
    found = trained([*wanted.values(), *(case.reference for case in wanted.values())])
    for case, result in found.items():
        assert case.cut.clip is None or result.norms.min() > case.cut.clip, "a step was not clipped"
    return {key: differences(found[case], found[case.reference]) for key, case in wanted.items()}


def table(worst: dict[Key, dict[str, float]]) -> Table:
    shown = Table(title="Worst relative difference from one rank", title_justify="left")
    for name in ("mesh", "moe_impl", "variant"):
        shown.add_column(name, no_wrap=True)
    for name in next(iter(worst.values())):
        shown.add_column(name.replace("_", " "), justify="right")
    shown.add_column("bound", justify="right")
    for key, values in worst.items():
        limit = "differs" if key.variant in MUTANTS else f"{bound(key):.0e}"
        shown.add_row(*key, *(f"{value:.1e}" for value in values.values()), limit)
    return shown


@pytest.mark.proof
@pytest.mark.ranks
def test_every_mesh_computes_the_step_of_one_rank(capsys: pytest.CaptureFixture[str]) -> None:
    worst = measured(cases())
    with capsys.disabled():
        Console(width=180).print(table(worst))
    for key, values in worst.items():
        if key.variant in MUTANTS:
            assert max(values.values()) > 1e-3, key
        else:
            assert max(values.values()) <= bound(key), key
            assert values["initial_weights"] == 0, key

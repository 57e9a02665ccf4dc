"""Compiles every launch for every GPU and dtype, and reports defects."""

from itertools import groupby
from typing import NamedTuple

import torch

from scripts.dev.gate.compiled import SHARED_LIMITS, Compiled, compile_launch
from scripts.dev.gate.launches import MEGABLOCKS, Launch, megablocks_launches, our_launches

DTYPES = (torch.bfloat16, torch.float32)


class Row(NamedTuple):
    """One kind of launch, in all configurations that the autotuner of its kernel tries."""

    kernel: str
    variant: str
    dtype: torch.dtype
    n_configs: int
    compiled: dict[int, list[Compiled]]
    """The results by compute capability, multiplied by ten (90 for 9.0)."""
    errors: list[str]

    def cells(self) -> dict[str, str]:
        name = f"{self.kernel} {self.variant}".strip()
        cells = {"kernel": name, "dtype": str(self.dtype).removeprefix("torch."), "configs": str(self.n_configs)}
        return cells | {f"sm_{capability}": _usage(made) for capability, made in self.compiled.items()}


def _usage(made: list[Compiled]) -> str:
    """Format the maximum of each value over all configurations."""
    columns = zip(*((each.registers, each.spilled, each.shared) for each in made), strict=True)
    return " / ".join(f"{max(column):,}" for column in columns) or "error"


def gate(*, every_config: bool) -> tuple[list[Row], list[str]]:
    """Return the rows, and notes about kernels that could not be compiled. every_config: False compiles only the
    largest tuned configuration."""
    rows, notes = [], []
    for dtype in DTYPES:
        launches = our_launches(dtype)
        try:
            launches += megablocks_launches(dtype)
        except Exception as error:  # MegaBlocks is not installed, or Triton's autotuner (3.3) needs a driver
            notes = [f"not compiled: MegaBlocks' kernels ({type(error).__name__}: {error})"]
        for (kernel, variant), group in groupby(launches, key=lambda launch: (launch.name, launch.variant)):
            configs = list(group)
            rows.append(_row(kernel, variant, dtype, configs if every_config else [max(configs, key=_elements)]))
    return rows, notes


def _elements(launch: Launch) -> float:
    """Return the number of elements per warp, which determines the number of registers."""
    return launch.constants.get("BLOCK_X", 0) / launch.options.get("num_warps", 1)


def _row(kernel: str, variant: str, dtype: torch.dtype, configs: list[Launch]) -> Row:
    row = Row(kernel, variant, dtype, len(configs), {capability: [] for capability in SHARED_LIMITS}, [])
    for launch in configs:
        for capability in SHARED_LIMITS:
            where = f"{kernel} {variant}, {dtype}, {launch.options or 'default options'}, sm_{capability}"
            try:
                made = compile_launch(launch, capability)
            except Exception as error:  # any error of Triton's compiler, LLVM or ptxas
                row.errors.append(f"{where}: {type(error).__name__}: {error}")
                continue
            row.compiled[capability].append(made)
            row.errors.extend(f"{where}: {defect}" for defect in made.defects(capability))
            if launch.file != MEGABLOCKS:
                row.errors.extend(f"{where}: overflows at 2**31 elements: {product}" for product in made.narrow)
    return row

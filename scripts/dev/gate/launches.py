"""Records how DBRX launches each Triton kernel, while the calling code runs on the CPU.

A recorder replaces each kernel, and the function that launches the kernel is called with tensors of DBRX's widths.
Types, constants and tuned configurations are therefore the same as in a run.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
GLU = "train/models/experts/glu_triton.py"
MEGABLOCKS = "megablocks/backend/kernels.py"
KERNELS = {GLU: {"_glu_kernel", "_glu_backward_kernel", "_combine_kernel"}, MEGABLOCKS: {"_padded_copy"}}
"""The checked kernels by file: all kernels of this repository, and the MegaBlocks kernels that Dropless launches."""

D_MODEL, FFN_HIDDEN_SIZE, EXPERTS, TOP_K = 6144, 10752, 16, 4
_FEW, _MANY = 64, 2**31 // FFN_HIDDEN_SIZE + 1
"""The numbers of tokens with which the kernels are launched. With `_MANY`, a tensor has at least 2**31 elements, for
which Triton passes sizes as 64-bit integers and compiles another variant."""
_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}


class Launch(NamedTuple):
    """The arguments for which Triton compiles a kernel."""

    file: str
    """The kernel's file: a key of KERNELS."""
    name: str
    function: Any
    """The triton.JITFunction."""
    types: dict[str, str]
    """The type of each parameter, as in ASTSource: *bf16, i64, constexpr."""
    constants: dict[str, Any]
    aligned: tuple[int, ...]
    """Indices of the parameters whose values are divisible by 16. The addresses of all tensors are divisible by 16."""
    options: dict[str, int]
    """Compile options, such as num_warps."""

    @property
    def variant(self) -> str:
        """A text that distinguishes the launches of a kernel. The text excludes the dtype and tuned parameters."""
        tuned = ("BLOCK", "BLOCK_X", "NUM_COLUMNS")
        parts = [f"{name}={value}" for name, value in self.constants.items() if name not in tuned and value is not None]
        parts += [f"{name}: {kind}" for name, kind in self.types.items() if kind == "i64"]
        return " ".join(parts)


def kernels_in(path: Path) -> set[str]:
    """Return the functions that a file decorates with triton.jit, or with another name to which triton.jit has been
    assigned. Does not require Triton."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    jit = {"triton.jit", "jit"}
    for node in ast.walk(tree):
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and value is not None and ast.unparse(value) == "triton.jit":
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            jit |= {ast.unparse(target) for target in targets}
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        if any(ast.unparse(each).partition("(")[0] in jit for each in node.decorator_list)
    }


def kernels_of_packages() -> dict[str, set[str]]:
    """Return all Triton kernels of this repository by file."""
    files = [path for folder in ("train", "data", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {path.relative_to(ROOT).as_posix(): kernels_in(path) for path in files if "triton" in path.read_text()}
    return {file: kernels for file, kernels in found.items() if kernels}


def megablocks_kernels() -> Path:
    """Return the path of the file with MegaBlocks' kernels, in the installed package or in the copy for the tests.

    Raises FileNotFoundError if MegaBlocks is not installed.
    """
    spec = importlib.util.find_spec("megablocks")
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    files = [*(folder / "backend/kernels.py" for folder in folders), Path(sys.prefix) / "megablocks" / MEGABLOCKS]
    for file in files:
        # The installed package may be a replacement with the same name.
        if file.is_file() and set(KERNELS[MEGABLOCKS]) <= kernels_in(file):
            return file
    raise FileNotFoundError("MegaBlocks is not installed: run make .venv/megablocks or scripts/dev/build_megablocks.sh")


def our_launches(dtype: torch.dtype) -> list[Launch]:
    """Return all launches of the kernels in glu_triton.py that can occur in a step."""
    module = importlib.import_module("train.models.experts.glu_triton")
    with _recorded(module, GLU) as launches:
        for tokens in (_FEW, _MANY):
            h1, h2, act = (torch.empty(tokens, FFN_HIDDEN_SIZE, dtype=dtype, device="meta") for _ in range(3))
            module.fused_glu(h1, h2, act)
        weights = torch.empty(_FEW, dtype=dtype, device="meta")
        h1, h2, act, dh2 = (torch.empty(_FEW, FFN_HIDDEN_SIZE, dtype=dtype, device="meta") for _ in range(4))
        module.fused_glu_backward(act, h1, h2, weights, dh2, act, weights)
        # With expert parallelism, each received row is assigned to one expert.
        for experts_a_token in (TOP_K, 1):
            slots = torch.empty(_FEW // experts_a_token, experts_a_token, dtype=torch.int64, device="meta")
            y = torch.empty(_FEW, D_MODEL, dtype=dtype, device="meta")
            for weighted in (slots.to(dtype), None):
                module.fused_combine(y, slots, weighted)
    return launches


def megablocks_launches(dtype: torch.dtype) -> list[Launch]:
    """Return all launches of MegaBlocks' kernels that can occur in a step, for each configuration of the autotuner.

    Raises FileNotFoundError if MegaBlocks is not installed.
    """
    from train.models.experts.assignment import assign
    from train.models.experts.megablocks import MegaBlocks

    module = _loaded(megablocks_kernels())
    with _recorded(module, MEGABLOCKS) as launches:
        # With expert parallelism, each received row is assigned to one expert.
        for experts_a_token in (TOP_K, 1):
            experts_TK = torch.arange(_FEW).remainder(EXPERTS).view(-1, experts_a_token)
            grouped = MegaBlocks(assign(experts_TK, EXPERTS), library=(module, None))
            y_AD = grouped.gather(torch.empty(len(experts_TK), D_MODEL, dtype=dtype))
            for weights_TK in (torch.empty(experts_TK.shape, dtype=dtype), None):
                grouped.combine(y_AD, weights_TK)
    return launches


def _loaded(file: Path) -> ModuleType:
    """Load only this file and not its package, which imports compiled extensions."""
    spec = importlib.util.spec_from_file_location("megablocks_kernels", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _recorded(module: ModuleType, file: str) -> Iterator[list[Launch]]:
    """In this context, the kernels of the module compute nothing, and their launches are recorded."""
    launches: list[Launch] = []
    real = {name: getattr(module, name) for name in sorted(KERNELS[file])}
    for name, kernel in real.items():
        setattr(module, name, _Recorder(file, name, kernel, launches))
    try:
        yield launches
    finally:
        for name, kernel in real.items():
            setattr(module, name, kernel)


class _Recorder:
    """Records launches of the form kernel[grid](...)."""

    def __init__(self, file: str, name: str, kernel: Any, launches: list[Launch]) -> None:
        self.file, self.name, self.launches = file, name, launches
        # An autotuner has `configs`, and its kernel is `fn`.
        self.configs = getattr(kernel, "configs", None)
        self.function = kernel if self.configs is None else kernel.fn

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._record

    def _record(self, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(self.function.arg_names, args, strict=False)) | kwargs
        if self.configs is None:
            self.launches.append(self._launch(given, {}))
        for config in self.configs or ():
            options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            self.launches.append(self._launch(given | config.kwargs, options))

    def _launch(self, given: dict[str, Any], options: dict[str, int]) -> Launch:
        types, constants, aligned = specialise(self.function, given)
        return Launch(self.file, self.name, self.function, types, constants, aligned, options)


def specialise(function: Any, given: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any], tuple[int, ...]]:
    """Return types, constants and aligned parameters for these arguments, determined in the same way as in
    JITFunction.run."""
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned: list[int] = []
    for place, parameter in enumerate(function.params):
        value = given[parameter.name]
        if parameter.is_constexpr or value is None:
            types[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            types[parameter.name] = f"*{_TYPES[value.dtype]}"
            aligned.append(place)
        else:
            types[parameter.name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(place)
    return types, constants, tuple(aligned)

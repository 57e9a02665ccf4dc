"""Number formats: their names everywhere, their sizes, and which of them is used where. Imports no torch by itself."""

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]
"""In what weights are written, and in what they generate."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Format(NamedTuple):
    dtype: str
    """torch's name, which config.json and callbacks.hf_checkpointer have too."""
    safetensors: str
    """The name in headers of safetensors files."""
    n_bytes: int

    @property
    def torch_dtype(self) -> "torch.dtype":
        import torch

        return getattr(torch, self.dtype)


FORMATS = {
    "fp32": Format("float32", "F32", 4),
    "bf16": Format("bfloat16", "BF16", 2),
    "fp16": Format("float16", "F16", 2),
}
"""fp16 is only read."""
BY_SAFETENSORS = {each.safetensors: each for each in FORMATS.values()}
BY_DTYPE: dict[str, Precision] = {FORMATS[precision].dtype: precision for precision in PRECISIONS}
NF4_BLOCK, NF4_BLOCK_BYTES = 64, 36
"""Numbers in a block of NF4, and its bytes: 32 of codes, 4 of the block's largest absolute value."""


def on_device(precision: str, *, gpu: bool) -> str:
    """The config's `precision` as the device has it: a CPU computes in fp32."""
    return precision if gpu else "fp32"


def computed(precision: str) -> Precision:
    """In what GEMMs compute."""
    return "bf16" if precision == "amp_bf16" else "fp32"


def gathered(precision: str, mixed_precision: str | None) -> Precision | None:
    """In what FSDP gathers weights; None: in that which they are kept in. mixed_precision: None without FSDP."""
    return computed(precision) if precision == "amp_bf16" and mixed_precision in ("PURE", "DEFAULT") else None


def reduced(mixed_precision: str) -> Precision:
    """In what FSDP reduces the gradients of weights that it gathers in bf16."""
    return "bf16" if mixed_precision == "PURE" else "fp32"


def frozen(base_dtype: str, gathered: Precision | None) -> Precision | None:
    """In what the base beneath adapters keeps the weights that are not packed; None: as a whole model would."""
    kept: dict[str, Precision | None] = {"fp32": None, "bf16": "bf16", "nf4": gathered}
    return kept[base_dtype]

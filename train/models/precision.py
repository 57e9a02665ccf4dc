"""The floating-point formats: their names, their sizes, and the purpose for which each is used. Importing this module
does not import torch."""

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]
"""The formats in which weights can be written, and in which a model can generate text."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Format(NamedTuple):
    dtype: str
    """The name of the dtype in torch, in config.json and in callbacks.hf_checkpointer."""
    safetensors: str
    """The name in the headers of safetensors files."""
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
"""The supported formats. Weights in fp16 can be read, but not written."""
BY_SAFETENSORS = {each.safetensors: each for each in FORMATS.values()}
BY_DTYPE: dict[str, Precision] = {FORMATS[precision].dtype: precision for precision in PRECISIONS}
NF4_BLOCK, NF4_BLOCK_BYTES = 64, 36
"""The number of values in an NF4 block, and its size in bytes: 32 bytes of codes, and 4 for the largest absolute
value."""


def on_device(precision: str, *, gpu: bool) -> str:
    """The precision that a device uses for the config's `precision`: a CPU always computes in fp32."""
    return precision if gpu else "fp32"


def computed(precision: str) -> Precision:
    """The format in which GEMMs are computed."""
    return "bf16" if precision == "amp_bf16" else "fp32"


def gathered(precision: str, mixed_precision: str | None) -> Precision | None:
    """The format in which FSDP gathers weights. None means the format in which the weights are stored. mixed_precision
    is None if FSDP is not used."""
    return computed(precision) if precision == "amp_bf16" and mixed_precision in ("PURE", "DEFAULT") else None


def reduced(mixed_precision: str) -> Precision:
    """The format in which FSDP reduces gradients if it gathers the weights in bf16."""
    return "bf16" if mixed_precision == "PURE" else "fp32"


def frozen(base_dtype: str, gathered: Precision | None) -> Precision | None:
    """The format of the frozen base weights that are not quantized, or None for the format that they have without
    adapters."""
    kept: dict[str, Precision | None] = {"fp32": None, "bf16": "bf16", "nf4": gathered}
    return kept[base_dtype]

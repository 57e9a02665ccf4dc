"""Frozen weights in 4 bits (NF4 of QLoRA, Dettmers et al. 2023) with bitsandbytes, in a form that FSDP2 can shard.

A row of N numbers is stored as N/2 bytes of codes and, for every 64 numbers, their largest absolute value in fp32: 36
bytes per 64 numbers. The packed rows are stored in a tensor [M, N * 36 / 64 / itemsize] of the compute dtype, because
all parameters of an FSDP2 unit must have the same floating-point dtype, and because a cast to another dtype would
corrupt the bytes. The tensor can be split between any two rows, and each rank packs its own rows. Each product unpacks
the weight that it uses, once in forward and once in backward, and does not keep the unpacked weight.
Shapes: T tokens, N inputs, M outputs, P elements of a packed row.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from train.models.config import NF4_WEIGHTS
from train.models.precision import NF4_BLOCK, NF4_BLOCK_BYTES


def pack(weight_MN: Tensor, dtype: torch.dtype) -> Tensor:
    """Pack a weight into [M, P] of this dtype. N must be a multiple of 64."""
    import bitsandbytes.functional as bnb

    M, N = weight_MN.shape
    codes, state = bnb.quantize_4bit(weight_MN.float().flatten(), blocksize=NF4_BLOCK, quant_type="nf4")
    largest = state.absmax.float().view(M, N // NF4_BLOCK)
    return torch.cat((codes.view(M, N // 2), largest.view(torch.uint8)), dim=1).view(dtype)


def unpack(packed_MP: Tensor, dtype: torch.dtype) -> Tensor:
    """Unpack a weight to [M, N]. The values are those of the original weight, rounded to NF4."""
    import bitsandbytes.functional as bnb

    bytes_M = packed_MP.detach().contiguous().view(torch.uint8)
    shape = torch.Size((bytes_M.shape[0], bytes_M.shape[1] // NF4_BLOCK_BYTES * NF4_BLOCK))
    codes, largest = bytes_M.split((shape[1] // 2, shape[1] // NF4_BLOCK * 4), dim=1)
    state = bnb.QuantState(
        absmax=largest.contiguous().view(torch.float32).flatten(),
        shape=shape,
        code=bnb.get_4bit_type("nf4", device=str(packed_MP.device)),
        blocksize=NF4_BLOCK,
        quant_type="nf4",
        dtype=dtype if dtype != torch.float64 else torch.float32,  # bitsandbytes has no fp64
    )
    return bnb.dequantize_4bit(codes.reshape(-1, 1), state).view(shape).to(dtype)


def pack_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the large weights of the blocks by empty packed parameters. The model must be on the meta device."""
    for path, module in model.named_modules():
        for name, param in list(module.named_parameters(recurse=False)):
            if f"{path}.{name}".endswith(NF4_WEIGHTS):
                columns = param.shape[1] // NF4_BLOCK * NF4_BLOCK_BYTES // dtype.itemsize
                packed = torch.empty(param.shape[0], columns, dtype=dtype, device=param.device)
                setattr(module, name, nn.Parameter(packed, requires_grad=False))
                module.packed = True  # pyright: ignore[reportArgumentType]


def packed_linear(x_TN: Tensor, packed_MP: Tensor) -> Tensor:
    """x W^T, in autocast's dtype if autocast is enabled."""
    device = x_TN.device.type
    if torch.is_autocast_enabled(device):
        x_TN = x_TN.to(torch.get_autocast_dtype(device))
    return _PackedLinear.apply(x_TN, packed_MP)  # pyright: ignore[reportReturnType]


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TN: Tensor, packed_MP: Tensor) -> Tensor:
        ctx.save_for_backward(packed_MP)
        return torch.mm(x_TN, unpack(packed_MP, x_TN.dtype).t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (packed_MP,), (dy_TM,) = ctx.saved_tensors, grad_outputs
        return torch.mm(dy_TM, unpack(packed_MP, dy_TM.dtype)), None


def rows_at_a_time(shape: tuple[int, ...]) -> int:
    """The number of rows of a weight to pack at a time, so that the rows take up to 64 MB in fp32."""
    return max(1, (1 << 24) // math.prod(shape[1:]))

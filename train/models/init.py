"""Initial weights that depend only on the seed and the parameter's name, and not on the number of ranks, the sharding,
the device, or the way in which the model was built.

The values of each parameter are drawn in blocks of whole rows. Each block has its own generator, so that a rank needs
to draw only the blocks that overlap its shard.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from train.models.config import ModelConfig

_BLOCK_NUMEL = 1 << 20


def init_std(config: ModelConfig, name: str) -> float | None:
    """Standard deviation of a parameter's initial values. None for the weight of a norm, which is initialized to
    one."""
    if "norm" in name.rsplit(".", 2)[-2]:
        return None
    if config.scale_residual_init and name.endswith(("out_proj.weight", ".w2")):
        return config.initializer_range / math.sqrt(2 * config.n_layers)
    return config.initializer_range


def draw_rows(seed: int, name: str, shape: tuple[int, ...], start: int, stop: int, std: float | None) -> Tensor:
    """Rows [start, stop) of the parameter's initial values, on the CPU in fp32."""
    if std is None:
        return torch.ones(stop - start, *shape[1:])
    return draw_blocks(
        seed, name, shape, start, stop, lambda drawn, generator: drawn.normal_(0.0, std, generator=generator)
    )


def draw_blocks(
    seed: int,
    name: str,
    shape: tuple[int, ...],
    start: int,
    stop: int,
    draw: Callable[[Tensor, torch.Generator], Tensor],
) -> Tensor:
    """Rows [start, stop) of a parameter. draw(block, generator) fills each block of the parameter in place."""
    tail = shape[1:]
    rows_per_block = max(1, _BLOCK_NUMEL // max(1, math.prod(tail)))
    blocks = []
    for block in range(start // rows_per_block, -(-stop // rows_per_block)):
        first, last = block * rows_per_block, min((block + 1) * rows_per_block, shape[0])
        generator = torch.Generator().manual_seed(_key(seed, name, block))
        drawn = draw(torch.empty(last - first, *tail), generator)
        blocks.append(drawn[max(start, first) - first : min(stop, last) - first])
    return torch.cat(blocks) if blocks else torch.empty(0, *tail)


def _key(seed: int, name: str, block: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}/{block}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of an unsharded model with its initial values."""
    for name, param in model.named_parameters():
        shape = tuple(param.shape)
        param.copy_(draw_rows(seed, name, shape, 0, shape[0], init_std(config, name)))

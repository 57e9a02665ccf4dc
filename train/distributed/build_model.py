"""Builds the model distributed over ranks: FSDP2 units, precision, activation checkpointing, and sharded
initialization.

Every rank builds the model on the meta device, shards it, and then fills only its own shards, so that the full model is
never in the memory of a single rank.
"""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
    offload_wrapper,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from data.base.errors import ConfigError
from train.config.schema import FSDPConfig
from train.distributed.torch_compat import patch_fsdp2_on_gloo
from train.hf.finite import is_finite
from train.models import precision as precisions
from train.models.config import LoraConfig, ModelConfig
from train.models.dbrx import DbrxBlock, DbrxForCausalLM
from train.models.experts.experts import ExpertsMLP
from train.models.experts.parallel import ExpertParallel
from train.models.init import draw_rows, init_std
from train.models.lora.adapters import adapters, add_lora, draw_adapter_rows, is_adapter
from train.models.lora.nf4 import pack, pack_parameters, rows_at_a_time
from train.models.precision import FORMATS, Precision
from train.models.recompute import named_parameters
from train.models.shapes import parameter_shapes


class Weights(Protocol):
    """A source of weights for a model."""

    def __contains__(self, name: str) -> bool: ...

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Read rows [start, stop) of a parameter into `out`, converted to the dtype of `out`."""
        ...


class NotFinite(ValueError):
    """The loaded weights contain NaN or infinite values."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"not finite: {', '.join(names)}")
        self.names = names
        """The parameters with NaN or infinite values on any rank, in the model's order."""


def build_model(
    config: ModelConfig,
    fsdp_config: FSDPConfig | None,
    *,
    precision: str,
    device: torch.device,
    seed: int,
    dtype: torch.dtype = torch.float32,
    pretrained: Weights | None = None,
    lora: LoraConfig | None = None,
) -> DbrxForCausalLM:
    """Build a DBRX model, sharded according to fsdp_config (if it is None, the model is not sharded), with pretrained
    weights or, if pretrained is None, with initial weights.

    If lora is given, the model's weights are frozen and stored in lora.base_dtype, and adapters in dtype are added. If
    any rank reads weights that are not finite, NotFinite is raised on every rank.
    """
    model = meta_model(config, fsdp_config, precision=precision, device=device, dtype=dtype, lora=lora)
    model.to_empty(device=device)
    if pretrained is None:
        _fill(model, config, seed, None)
        return model
    found: set[str] | ConfigError
    try:
        found = _fill(model, config, seed, pretrained)
    except ConfigError as error:
        found = error
    _refuse(found, model)
    return model


def meta_model(
    config: ModelConfig,
    fsdp_config: FSDPConfig | None,
    *,
    precision: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    lora: LoraConfig | None = None,
) -> DbrxForCausalLM:
    """The model that build_model returns, but with all weights on the meta device: `to_empty(device=device)` allocates
    them."""
    gathered = precisions.gathered(precision, fsdp_config.mixed_precision if fsdp_config is not None else None)
    kept = precisions.frozen(lora.base_dtype, gathered) if lora is not None else None
    base_dtype = FORMATS[kept].torch_dtype if kept is not None else dtype
    with torch.device("meta"):
        model = DbrxForCausalLM(config).to(base_dtype)
        if lora is not None:
            if lora.base_dtype == "nf4":
                pack_parameters(model, base_dtype)
            add_lora(model, lora, dtype)
    if fsdp_config is not None:
        patch_fsdp2_on_gloo()
        checkpoint_activations(model, fsdp_config)
        _shard(model, fsdp_config, _policy(fsdp_config, gathered, None if base_dtype is dtype else dtype), device.type)
    return model


def checkpoint_activations(model: DbrxForCausalLM, config: FSDPConfig) -> None:
    block = config.activation_checkpointing in (True, "block")
    if config.activation_checkpointing == "selective":
        for module in model.transformer.blocks:
            assert isinstance(module, DbrxBlock)
            module.norm_attn_norm.selective = True
            # If saved-tensor hooks are nested, only the innermost hooks apply, so this recomputation cannot be combined
            # with offloading.
            module.selective = not config.activation_cpu_offload
    if not block and not config.activation_cpu_offload:
        return

    def wrap(module: nn.Module) -> nn.Module:
        if block:
            module = checkpoint_wrapper(module, checkpoint_impl=CheckpointImpl.NO_REENTRANT)
        return offload_wrapper(module) if config.activation_cpu_offload else module

    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=wrap, check_fn=lambda module: isinstance(module, DbrxBlock)
    )


def make_mesh(config: FSDPConfig, device_type: str) -> DeviceMesh:
    """The mesh over which the model is sharded. It has a dimension "shard" and, with HYBRID_SHARD, a dimension
    "replicate" before "shard"."""
    world_size = dist.get_world_size()
    if config.sharding_strategy == "FULL_SHARD":
        return init_device_mesh(device_type, (world_size,), mesh_dim_names=("shard",))
    replicas = config.data_parallel_replicate_degree
    assert replicas is not None, "FSDPConfig checks it"
    return init_device_mesh(device_type, (replicas, world_size // replicas), mesh_dim_names=("replicate", "shard"))


def make_experts_mesh(config: FSDPConfig, device_type: str) -> DeviceMesh:
    """The mesh of the experts. The ranks along the shard dimension are split into groups of consecutive ranks. Within
    each group (the dimension `expert`), each rank has a different part of the experts. Ranks along the dimension
    `expert_shard` have the same experts, which are sharded over these ranks."""
    replicas, degree = config.data_parallel_replicate_degree, config.expert_parallel_degree
    sizes = (dist.get_world_size() // ((replicas or 1) * degree), degree)
    names = ("expert_shard", "expert")
    if replicas is None:
        return init_device_mesh(device_type, sizes, mesh_dim_names=names)
    return init_device_mesh(device_type, (replicas, *sizes), mesh_dim_names=("replicate", *names))


def _shard(model: DbrxForCausalLM, config: FSDPConfig, policy: MixedPrecisionPolicy, device_type: str) -> None:
    """Create the FSDP2 units: each adapter, the embedding, each block, and a root unit with the last norm and the head.
    With expert parallelism, the experts of each block are also a unit."""
    mesh = make_mesh(config, device_type)
    units = [(adapter, mesh) for adapter in adapters(model)]
    if config.expert_parallel_degree > 1:
        units += _divide_experts(model, make_experts_mesh(config, device_type))
    units += [(unit, mesh) for unit in (model.transformer.wte, *model.transformer.blocks, model)]
    for unit, its_mesh in units:
        fully_shard(unit, mesh=its_mesh, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)


def _divide_experts(model: DbrxForCausalLM, mesh: DeviceMesh) -> list[tuple[nn.Module, DeviceMesh]]:
    """Keep only the rows of this rank's experts. Returns the experts' modules that become FSDP2 units, each with the
    mesh over which it is sharded."""
    shards = mesh["replicate", "expert_shard"] if mesh.ndim > 2 else mesh["expert_shard"]
    units: list[tuple[nn.Module, DeviceMesh]] = []
    for module in model.modules():
        if isinstance(module, ExpertsMLP):
            trained = False
            for name, param in list(module.named_parameters(recurse=False)):
                trained = trained or param.requires_grad
                divided = distribute_tensor(param.data, mesh["expert"], [Shard(0)], src_data_rank=None)
                setattr(module, name, nn.Parameter(divided, requires_grad=param.requires_grad))
            # `trained` is True if the experts' own weights are trained. Adapters are on every rank, so their gradients
            # are averaged over all ranks.
            module.parallel = ExpertParallel(mesh.get_group("expert"), averaged=trained)
            units.append((module, shards))
    return units


def _policy(config: FSDPConfig, gathered: Precision | None, computed: torch.dtype | None) -> MixedPrecisionPolicy:
    """computed: used only if gathered is None, that is, if FSDP2 gathers weights in their stored dtype. It is the dtype
    in which these weights are used for computation, or None for the stored dtype."""
    if gathered is None:
        return MixedPrecisionPolicy(param_dtype=computed)
    reduced = precisions.reduced(config.mixed_precision)
    return MixedPrecisionPolicy(param_dtype=FORMATS[gathered].torch_dtype, reduce_dtype=FORMATS[reduced].torch_dtype)


@torch.no_grad()
def _fill(model: nn.Module, config: ModelConfig, seed: int, pretrained: Weights | None) -> set[str]:
    """Fill this rank's rows of every parameter: read the parameters that `pretrained` contains, and draw initial values
    for all others.

    Returns the names of the weights in which this rank has read NaN or infinite values.
    """
    shapes, not_finite = parameter_shapes(config), set()
    for name, param in named_parameters(model):
        # For weights that are packed in 4 bits, this is the shape before packing.
        shape = shapes.get(name, tuple(param.shape))
        if isinstance(param, DTensor):
            mesh, placements = param.device_mesh, param.placements
            local_shape, offset = compute_local_shape_and_global_offset(param.shape, mesh, placements)
            start, stop = offset[0], offset[0] + local_shape[0]
            local = param.to_local()
        else:
            start, stop, local = 0, shape[0], param
        if stop == start:
            continue
        packed = shape != tuple(param.shape)
        step = rows_at_a_time(shape) if packed else stop - start
        for first in range(start, stop, step):
            last = min(first + step, stop)
            out = torch.empty(last - first, *shape[1:], device=local.device) if packed else local
            if pretrained is not None and name in pretrained:
                pretrained.rows(name, first, last, out)
                if not is_finite(out):
                    not_finite.add(name)
            elif is_adapter(name):
                out.copy_(draw_adapter_rows(seed, name, shape, first, last))
            else:
                out.copy_(draw_rows(seed, name, shape, first, last, init_std(config, name)))
            if packed:
                local[first - start : last - start] = pack(out, local.dtype)
    return not_finite


def _refuse(mine: set[str] | ConfigError, model: nn.Module) -> None:
    """Raise on all ranks if any rank could not read its rows, or found values that are not finite. Otherwise, the other
    ranks would wait for the rank that failed."""
    found = [mine]
    if dist.is_initialized():
        found = [mine] * dist.get_world_size()
        dist.all_gather_object(found, mine)
    for error in found:
        if isinstance(error, ConfigError):
            raise error
    of_all = set[str]().union(*(names for names in found if isinstance(names, set)))
    if of_all:
        raise NotFinite([name for name, _ in named_parameters(model) if name in of_all])

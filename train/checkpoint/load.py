"""Load a checkpoint's tensors into a model and its optimizer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import FSDPModule

from data.base.errors import ConfigError
from train.checkpoint.full import FullCheckpoint
from train.checkpoint.reader import OPTIMIZERS, PREFIX, CheckpointReader
from train.checkpoint.storage.finite import NotFiniteError, keys_not_finite
from train.models.lora.adapters import is_adapter
from train.models.recompute import named_parameters

Checkpoint = CheckpointReader | FullCheckpoint


def open_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """Open a checkpoint: a folder, or a single file that an earlier version wrote. Raises CorruptCheckpointError."""
    return CheckpointReader(path, verify=verify) if path.is_dir() else FullCheckpoint(path)


def saved_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are saved in checkpoints, in the sharded form that the optimizer uses. If the model
    has adapters, only the adapters are saved, because the base can be loaded from its source again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # torch 2.7 leaves the root module's parameters gathered after a forward pass without a backward pass
            # (evaluation).
            module.reshard()
    params = dict(named_parameters(model))
    adapters = {name: param for name, param in params.items() if is_adapter(name)}
    return adapters or params


def saved_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of the model and the optimizer that a checkpoint contains, by key."""
    params = saved_parameters(model)
    tensors: dict[str, Tensor] = {PREFIX + name: param for name, param in params.items()}
    for name, param in params.items():
        for key, value in optimizer.state.get(param, {}).items():
            if isinstance(value, Tensor):
                tensors[_state_key(optimizer, name, key)] = value
    return tensors


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, *, verify: bool = True) -> None:
    """Load a checkpoint into the model's parameters and, unless `optimizer` is None, into the optimizer's state.
    Every rank must call this.

    The settings of the optimizer's parameter groups, such as lr, are not loaded. Raises CorruptCheckpointError,
    NotFiniteError or ConfigError; every rank raises the same error. After an error, the values of the model and the
    optimizer are undefined.
    """
    params = saved_parameters(model)
    tensors: dict[str, Tensor] = {PREFIX + name: param for name, param in params.items()}
    states: dict[nn.Parameter, dict[str, Tensor]] = {}
    with _shared_errors():
        checkpoint = open_checkpoint(path, verify=verify)
    with _shared_errors():
        if optimizer is not None:
            states = _states_to_fill(checkpoint, params, optimizer)
            names = {param: name for name, param in params.items()}
            tensors |= {
                _state_key(optimizer, names[param], key): value
                for param, state in states.items()
                for key, value in state.items()
            }
        checkpoint.load(tensors)
    refuse_not_finite(path, tensors)
    if optimizer is not None:
        _set_states(optimizer, states)


def refuse_not_finite(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise NotFiniteError on every rank if any tensor contains NaN or infinity. Every rank must call this."""
    if keys := keys_not_finite(tensors):
        raise NotFiniteError(checkpoint, tuple(key.removeprefix(PREFIX).removeprefix(OPTIMIZERS) for key in keys))


def _state_key(optimizer: torch.optim.Optimizer, name: str, key: str) -> str:
    return f"{OPTIMIZERS}{type(optimizer).__qualname__}.state.model.{name}.{key}"


def _states_to_fill(
    checkpoint: Checkpoint, params: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[nn.Parameter, dict[str, Tensor]]:
    """Return the tensors into which the checkpoint's optimizer state is loaded. The result is empty if there is no
    state, as for SGD without momentum. The optimizer's own tensors are reused if they match, because there may not be
    enough memory for a second copy."""
    states: dict[nn.Parameter, dict[str, Tensor]] = {}
    with_state = set()
    for name, key in checkpoint.optimizer_keys(type(optimizer).__qualname__):
        with_state.add(name)
        param = params.get(name)
        if param is None or not param.requires_grad:
            continue
        size, dtype = checkpoint.describe(_state_key(optimizer, name, key))
        value = optimizer.state.get(param, {}).get(key)
        if not isinstance(value, Tensor) or tuple(value.shape) != size or value.dtype != dtype:
            like_param = size == tuple(param.shape)
            value = torch.zeros_like(param, dtype=dtype) if like_param else torch.zeros(size, dtype=dtype)
        states.setdefault(param, {})[key] = value.detach()
    trained = {name for name, param in params.items() if param.requires_grad}
    if with_state and (missing := sorted(trained - with_state)):
        raise ConfigError(
            f"{checkpoint.checkpoint} cannot be loaded into this run: it has no optimizer state for {_some(missing)}, "
            "because it was written with a different optimizer.freeze; restore the old value, or start a new run from "
            "the "
            "weights with another run_name, load_path and load_weights_only=true"
        )
    return states


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _set_states(optimizer: torch.optim.Optimizer, states: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
    """Set the states with Optimizer.load_state_dict, which identifies parameters by index and moves tensors to their
    devices."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    numbered = {number: dict(states[param]) for number, param in enumerate(params) if param in states}
    optimizer.load_state_dict({"state": numbered, "param_groups": groups})


@contextmanager
def _shared_errors() -> Iterator[None]:
    """On every rank, raise the error of the first rank that failed. torch's CheckpointException already contains the
    errors of all ranks; other errors are exchanged."""
    error: ConfigError | CheckpointException | None = None
    try:
        yield
    except (ConfigError, CheckpointException) as raised:
        error = raised
    first = next((found for found in dist.all_gather_object(_ours(error)) if found is not None), None)
    if first is not None:
        raise first from None
    if error is not None:
        raise error


def _ours(error: BaseException | None) -> ConfigError | None:
    if isinstance(error, CheckpointException):
        failures = [failure for failure, _ in error.failures.values()]
        return next((failure for failure in failures if isinstance(failure, ConfigError)), None)
    return error if isinstance(error, ConfigError) else None

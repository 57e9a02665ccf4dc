"""Load the checkpoint that a run starts from into its model and optimizer. If this checkpoint is corrupt, the previous
one is loaded."""

import torch
from composer.utils import dist

from data.base.console import logger
from data.base.errors import ConfigError
from train.checkpoint.load import load
from train.checkpoint.optimizer import changed_settings
from train.checkpoint.remote.staging import open_save_folder
from train.checkpoint.storage.files import corruption
from train.checkpoint.storage.manifest import CorruptCheckpointError, read_manifest
from train.config.schema import TrainConfig
from train.distributed.first_rank import on_first_rank
from train.models.dbrx import DbrxForCausalLM
from train.models.recompute import named_parameters
from train.run.inputs import Inputs, starting_from, warnings_about
from train.weights.changes import change_lines
from train.weights.start import Start, fall_back


def restore(config: TrainConfig, inputs: Inputs, model: DbrxForCausalLM, optimizer: torch.optim.Optimizer) -> Inputs:
    """Load and verify the tensors of the checkpoint that the run starts from. If this checkpoint is corrupt, an earlier
    one is loaded instead. Returns the inputs with the checkpoint that was loaded as their start. The optimizer keeps
    the settings of this run's config.

    Every rank must call this. Raises ConfigError, the same on every rank.
    """
    while (start := inputs.start) is not None:
        _check_optimizer(start, optimizer)
        try:
            load(start.path, model, optimizer if start.state is not None else None)
        except CorruptCheckpointError as error:
            inputs = _with_earlier_start(inputs, config, start, error)
        else:
            _report_settings(config, start, model, optimizer)
            break
    return inputs


def verify_end(config: TrainConfig, inputs: Inputs) -> Inputs:
    """Verify the last checkpoint of a finished run, from which nothing is loaded. Each rank verifies a part of the
    files. If the checkpoint is corrupt, an earlier one is used instead. Returns the inputs with the checkpoint that was
    used as their start.

    Every rank must call this. Raises ConfigError, the same on every rank.
    """
    while (start := inputs.start) is not None and start.run_id is not None and inputs.first_batch >= inputs.max_batches:
        found = dist.all_gather_object(_corruption_of_my_part(start))
        error = next((each for each in found if each is not None), None)
        if error is None:
            break
        if not isinstance(error, CorruptCheckpointError):
            raise error
        inputs = _with_earlier_start(inputs, config, start, error)
    return inputs


def _corruption_of_my_part(start: Start) -> ConfigError | None:
    try:
        manifest = read_manifest(start.path)
    except ConfigError as error:
        return error
    names = sorted(manifest.files) if manifest is not None else []
    return corruption(start.path, names[dist.get_global_rank() :: dist.get_world_size()])


def _with_earlier_start(inputs: Inputs, config: TrainConfig, start: Start, error: CorruptCheckpointError) -> Inputs:
    chosen: list[Start] = []

    def choose() -> None:
        remote = open_save_folder(config, inputs.run_name)
        chosen.append(fall_back(config, inputs.folder, start, error, remote=remote))

    # `choose` may be slow: it downloads a whole checkpoint if the save folder is in an object store.
    on_first_rank(choose, slow=f"restore/{start.path.name}")
    found = [chosen[0] if chosen else None]
    dist.broadcast_object_list(found, src=0)
    inputs = starting_from(inputs, config, inputs.run_name, found[0])
    for line in warnings_about(inputs):
        logger.warning(line)
    for line in change_lines(inputs.start, config):
        logger.info(line)
    return inputs


def _check_optimizer(start: Start, optimizer: torch.optim.Optimizer) -> None:
    asked = type(optimizer).__qualname__
    if start.state is not None and start.state.optimizer != asked:
        raise ConfigError(
            f"{start.path} cannot be loaded into this run: it was saved with {start.state.optimizer}, but "
            f"optimizer.name selects {asked}: restore the old optimizer, or start a new run from the weights with "
            "another run_name, load_path and load_weights_only=true"
        )


def _report_settings(
    config: TrainConfig, start: Start, model: DbrxForCausalLM, optimizer: torch.optim.Optimizer
) -> None:
    if start.state is None:
        return
    names = {param: name for name, param in named_parameters(model)}
    changed = changed_settings(config.optimizer.name, start.state.param_groups, optimizer.param_groups, names)
    if changed:
        logger.info(f"optimizer settings changed since the checkpoint: {'; '.join(changed)}")

"""The loaders of a run, from its inputs."""

from composer.utils import dist

from data.loading.loader import BatchLoader, eval_loader, train_loader
from train.config.schema import TrainConfig
from train.run.inputs import Inputs
from train.supervision.hangs.sections import waiting_for_data
from train.supervision.signals import StopSignals


def build_train_loader(config: TrainConfig, inputs: Inputs, signals: StopSignals) -> BatchLoader:
    loader = train_loader(
        inputs.data.streams,
        config.train_loader,
        inputs.data.plan,
        # One more than is trained, so that Composer's epoch, which is the whole run, never ends: the position in it
        # stays true in the last checkpoint, and a longer max_duration can go on from there.
        n_batches=inputs.max_batches + 1,
        rank=dist.get_global_rank(),
        world_size=dist.get_world_size(),
        pad_token_id=inputs.tokenizer.pad_token_id,
        limit=config.deadlines.data,
    )
    loader.interruptible, loader.waiting = signals.interruptible, waiting_for_data
    return loader


def build_eval_loader(config: TrainConfig, inputs: Inputs) -> BatchLoader | None:
    if config.eval_loader is None or inputs.eval_streams is None:
        return None
    loader = eval_loader(
        inputs.eval_streams,
        config.eval_loader,
        device_batch_size=config.device_eval_batch_size,
        rank=dist.get_global_rank(),
        world_size=dist.get_world_size(),
        pad_token_id=inputs.tokenizer.pad_token_id,
        limit=config.deadlines.data,
    )
    loader.waiting = waiting_for_data
    return loader

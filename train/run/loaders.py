"""The loaders of a run, from its inputs."""

from composer.utils import dist
from torch.utils.data import DataLoader

from data.loading.loader import eval_loader, train_loader
from train.config.schema import TrainConfig
from train.run.inputs import Inputs
from train.supervision.signals import StopSignals


def build_train_loader(config: TrainConfig, inputs: Inputs, signals: StopSignals) -> DataLoader:
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
    )
    loader.interruptible = signals.interruptible
    return loader


def build_eval_loader(config: TrainConfig, inputs: Inputs) -> DataLoader | None:
    if config.eval_loader is None or inputs.eval_streams is None:
        return None
    return eval_loader(
        inputs.eval_streams,
        config.eval_loader,
        device_batch_size=config.device_eval_batch_size,
        rank=dist.get_global_rank(),
        world_size=dist.get_world_size(),
        pad_token_id=inputs.tokenizer.pad_token_id,
    )

"""What a run reads, opened once: tokenizer, data, and the checkpoint that it starts from."""

from dataclasses import dataclass
from pathlib import Path

from composer.utils import dist
from torch.utils.data import DataLoader

from data.base.console import logger
from data.base.errors import under
from data.loading.loader import eval_loader, train_loader
from data.loading.opening import open_streams
from data.loading.rows import Rows
from data.tokenization.build import build_tokenizer
from data.tokenization.tokenizer import Tokenizer
from train.checkpoint.save_folder import local_folder
from train.config.load import check_vocab
from train.config.schema import TrainConfig
from train.distributed.first_rank import on_first_rank
from train.planning.run_data import RunData, open_data
from train.weights.frozen_base import check_base, frozen_base, frozen_weights
from train.weights.start import Start, find_start


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """What a run reads before its model is built. `open_inputs` opens them."""

    tokenizer: Tokenizer
    folder: Path | None
    """The save folder."""
    start: Start | None
    data: RunData

    @property
    def resuming(self) -> bool:
        return self.start is not None and self.start.resuming

    @property
    def max_batches(self) -> int:
        assert self.data.clock.max_batches is not None
        return self.data.clock.max_batches


def open_inputs(config: TrainConfig, run_name: str) -> Inputs:
    """Opens them, and says what was found. For every rank. Raises ConfigError or DataError for what cannot be used."""
    tokenizer = build_tokenizer(config.tokenizer)
    check_vocab(config, tokenizer.vocab_size)
    folder = local_folder(config, run_name)
    start = _start(config, folder)
    data = open_data(config, tokenizer, start.data_state if start is not None else None)
    for line in (*data.describe(config.max_duration), *data.plan.notes):
        logger.info(line)
    return Inputs(tokenizer=tokenizer, folder=folder, start=start, data=data)


def open_eval_streams(config: TrainConfig, tokenizer: Tokenizer) -> dict[str, Rows] | None:
    if config.eval_loader is None:
        return None
    with under("eval_loader.dataset"):
        return open_streams(config.eval_loader.dataset, tokenizer)


def build_train_loader(config: TrainConfig, inputs: Inputs) -> DataLoader:
    return train_loader(
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


def build_eval_loader(config: TrainConfig, inputs: Inputs, streams: dict[str, Rows] | None) -> DataLoader | None:
    if streams is None or config.eval_loader is None:
        return None
    return eval_loader(
        streams,
        config.eval_loader,
        device_batch_size=config.device_eval_batch_size,
        rank=dist.get_global_rank(),
        world_size=dist.get_world_size(),
        pad_token_id=inputs.tokenizer.pad_token_id,
    )


def _start(config: TrainConfig, folder: Path | None) -> Start | None:
    """What the run starts from. Rank 0 looks, so that all ranks agree."""
    found: list[Start | None] = [None]

    def look() -> None:
        found[0] = find_start(config, folder)
        if config.lora is not None and found[0] is not None and found[0].data_state is not None:
            check_base(found[0].path, frozen_weights(config), config)

    on_first_rank(look)
    dist.broadcast_object_list(found, src=0)
    (start,) = found
    if start is not None and start.resuming:
        logger.info(f"autoresume: going on from {start.path}")
    elif config.autoresume:
        logger.info(f"autoresume: no complete checkpoint in {folder}, starting from the beginning")
    if start is not None and not start.resuming:
        what = "the weights" if start.data_state is None else "the whole state"
        logger.info(f"starting from {what} in {start.path}")
    elif start is None and frozen_base(config) is not None:
        logger.info(f"starting from the frozen weights in {config.load_path}")
    return start

"""One run: build everything, then fit."""

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from composer.core import Callback
from composer.utils import dist, get_device

from data.base.errors import ConfigError, DataError, is_full, under
from data.loading.loader import eval_loader, train_loader
from data.loading.opening import open_streams
from data.tokenization.build import build_tokenizer
from data.tokenization.tokenizer import Tokenizer
from train.callbacks.generate import build_generate
from train.callbacks.hf_checkpointer import build_hf_checkpointer
from train.callbacks.remote_shards import RemoteShards
from train.callbacks.run_record import RunRecord
from train.callbacks.stream_monitor import StreamMonitor
from train.checkpoint.save_folder import furnish_save_folder, local_folder, run_name_of
from train.composer_model import DbrxForComposer
from train.config.load import check_vocab
from train.config.schema import TrainConfig
from train.distributed.build_model import NotFinite, Weights, build_model
from train.distributed.first_rank import on_first_rank
from train.hardware.device import choose_device
from train.hardware.kernels import choose_kernels
from train.hf.finite import DIVERGED, not_finite
from train.hf.repository import KEY
from train.models.config import ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.planning.run_data import RunData, open_data
from train.run.trainer import build_trainer
from train.weights.frozen_base import check_base, frozen_base, frozen_weights, note_base
from train.weights.pretrained import PretrainedFolder
from train.weights.start import Start, find_start

_EXPECTED_WARNINGS = (
    "FSDP2 Config/APIs are experimental",
    "The warmup duration is 0",
    "TypedStorage is deprecated",
    "Specifying `eval_interval=.*` without an `eval_dataloader`",
    "LearningRate is not in the state_dict",
)
"""Of Composer's, about what was chosen on purpose."""


def fit(config: TrainConfig, *, callbacks: Sequence[Callback] = (), dtype: torch.dtype = torch.float32) -> None:
    """Trains as config says. Raises ConfigError or DataError, before the first step, for what a user can mend, and
    later for what a file system refuses.

    callbacks are added to the config's; dtype is that of the weights (fp64 for tests of exactness).
    """
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    device = get_device(choose_device(config.device))
    dist.initialize_dist(device, timeout=config.dist_timeout)
    run_name = _run_name(config)
    precision = _precision(config, device.name)

    torch_device = torch.device("cuda", torch.cuda.current_device()) if device.name == "gpu" else torch.device("cpu")
    computed = torch.bfloat16 if precision == "amp_bf16" else dtype
    model_config, kernels = choose_kernels(config, dist.get_world_size(), torch_device, computed)
    for line in kernels:
        say(line)
    _check_lora(config, torch_device, model_config.ffn_config.moe_impl)
    tokenizer = build_tokenizer(config.tokenizer)
    check_vocab(config, tokenizer.vocab_size)
    folder = local_folder(config, run_name)
    start = _start(config, folder)
    resuming = start is not None and start.resuming
    run = open_data(config, tokenizer, start.data_state if start is not None else None)
    plan, clock = run.plan, run.clock
    for line in (*run.describe(config.max_duration), *plan.notes):
        say(line)
    generate = build_generate(config, tokenizer, clock)
    hf_checkpointer = build_hf_checkpointer(config, clock, run_name, folder, resuming=resuming)
    eval_streams = None
    if config.eval_loader is not None:
        with under("eval_loader.dataset"):
            eval_streams = open_streams(config.eval_loader.dataset, tokenizer)

    rank, world_size, pad = dist.get_global_rank(), dist.get_world_size(), tokenizer.pad_token_id
    model = _model(config, model_config, start, precision, torch_device, dtype)
    assert clock.max_batches is not None
    trainer = build_trainer(
        config,
        model=DbrxForComposer(config.model, model, config.lora),
        device=device,
        train_loader=train_loader(
            run.streams,
            config.train_loader,
            plan,
            # One more than is trained, so that Composer's epoch, which is the whole run, never ends: the position in it
            # stays true in the last checkpoint, and a longer max_duration can go on from there.
            n_batches=clock.max_batches + 1,
            rank=rank,
            world_size=world_size,
            pad_token_id=pad,
        ),
        eval_loader=eval_loader(
            eval_streams,
            config.eval_loader,
            device_batch_size=config.device_eval_batch_size,
            rank=rank,
            world_size=world_size,
            pad_token_id=pad,
        )
        if eval_streams is not None and config.eval_loader is not None
        else None,
        clock=clock,
        plan=plan,
        callbacks=[*_data_callbacks(run), *generate, *callbacks],
        after_saving=[*_run_record(config, folder, run), *([hf_checkpointer] if hf_checkpointer else [])],
        run_name=run_name,
        precision=precision,
        save_folder=str(folder) if folder is not None else None,
        start=start,
    )
    batch = trainer.state.timestamp.batch.value
    if hf_checkpointer is not None and resuming:
        hf_checkpointer.catch_up(batch)
    if batch >= clock.max_batches:
        end = f"max_duration {config.max_duration} is {clock.max_batches}"
        say(f"nothing left to train: {start.path if start is not None else 'it'} is at batch {batch}, and {end}")
    else:
        if folder is not None:
            on_first_rank(lambda: _furnish(folder, config, tokenizer, resuming=resuming))
        with _full_disk_named(config, folder):
            if config.eval_first and eval_streams is not None and not resuming:
                trainer.eval()
            trainer.fit()
    trainer.close()
    if hf_checkpointer is not None:
        hf_checkpointer.check()


def say(line: str) -> None:
    """One line on the console, from one rank."""
    if dist.get_global_rank() == 0:
        print(line, flush=True)


def _run_name(config: TrainConfig) -> str:
    names = [run_name_of(config)]
    dist.broadcast_object_list(names, src=0)
    return names[0]


def _model(
    config: TrainConfig,
    model_config: ModelConfig,
    start: Start | None,
    precision: str,
    device: torch.device,
    dtype: torch.dtype,
) -> DbrxForCausalLM:
    weights = _weights(config, start)
    try:
        return build_model(
            model_config,
            config.fsdp_config,
            precision=precision,
            device=device,
            seed=config.seed,
            dtype=dtype,
            pretrained=weights,
            lora=config.lora,
        )
    except NotFinite as error:
        if isinstance(weights, PretrainedFolder):
            raise ConfigError(weights.not_finite(error.names)) from None
        defect = not_finite("its weights", error.names, DIVERGED)
        raise ConfigError(f"load_path is {config.load_path!r}, but {defect}") from None


def _weights(config: TrainConfig, start: Start | None) -> Weights | None:
    """What the model starts with. A checkpoint brings all weights anyway, but one of adapters never their base."""
    if config.lora is None and start is not None:
        return None
    if (base := frozen_base(config)) is not None:
        return base
    name = config.model.pretrained_model_name_or_path
    if name is not None:
        say(f"starting from the weights in {name}")
        return PretrainedFolder.open(name, config.model)
    if config.lora is not None:
        say(
            f"lora: the frozen base is drawn from seed {config.seed}, because {KEY} names no weights and load_path no "
            "checkpoint of a whole model"
        )
    return None


def _check_lora(config: TrainConfig, device: torch.device, moe_impl: str) -> None:
    """Raises ConfigError when bitsandbytes is needed and missing, or the experts' GEMMs cannot take this rank; says
    what an export will not tell of."""
    lora = config.lora
    if lora is not None and lora.base_dtype == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "lora.base_dtype is nf4, but bitsandbytes is not installed: pip install -e '.[nf4]', or write bf16"
        )
    if lora is None or not {"w1", "v1", "w2"} & set(lora.targets):
        return
    if device.type == "cuda" and moe_impl != "torch" and lora.r % 8:
        raise ConfigError(
            f"lora.r is {lora.r}, but the grouped GEMMs of {moe_impl} want rows of 16 bytes: write a multiple of 8, or "
            "model.ffn_config.moe_impl=torch"
        )
    if lora.dropout:
        say(f"lora.dropout {lora.dropout}: on experts in training alone, PEFT's form of their adapters has none")


def _precision(config: TrainConfig, device: str) -> str:
    if device == "cpu" and config.precision == "amp_bf16":
        say("precision: amp_bf16 becomes fp32 on CPU")
        return "fp32"
    return config.precision


def _data_callbacks(run: RunData) -> list[Callback]:
    callbacks: list[Callback] = [StreamMonitor(run.plan, {name: rows.n_rows for name, rows in run.streams.items()})]
    if any(rows.is_remote for rows in run.streams.values()):
        callbacks.append(RemoteShards(run.cache))
    return callbacks


def _run_record(config: TrainConfig, folder: Path | None, run: RunData) -> list[Callback]:
    if folder is None:
        return []
    assert run.clock.max_batches is not None
    return [RunRecord(folder, run.plan, run.clock.batches(config.save_interval), run.clock.max_batches)]


def _furnish(folder: Path, config: TrainConfig, tokenizer: Tokenizer, *, resuming: bool) -> None:
    furnish_save_folder(folder, config, tokenizer, resuming=resuming)
    if config.lora is not None:
        note_base(folder, frozen_weights(config))


@contextmanager
def _full_disk_named(config: TrainConfig, folder: Path | None) -> Iterator[None]:
    """DataError for what loggers cannot write; checkpoints have their own (callbacks/checkpoint_saver.py)."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        file, board = config.loggers.file, config.loggers.tensorboard
        places = {
            "save_folder": folder,
            "loggers.file.filename": file.filename if file is not None else None,
            "loggers.tensorboard.log_dir": board.log_dir if board is not None else None,
        }
        named = ", ".join(f"{key} {place}" for key, place in places.items() if place is not None)
        raise DataError(
            f"no space is left where the run writes ({named}): free some and start again with autoresume=true"
        ) from None


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
        say(f"autoresume: going on from {start.path}")
    elif config.autoresume:
        say(f"autoresume: no complete checkpoint in {folder}, starting from the beginning")
    if start is not None and not start.resuming:
        what = "the weights" if start.data_state is None else "the whole state"
        say(f"starting from {what} in {start.path}")
    elif start is None and frozen_base(config) is not None:
        say(f"starting from the frozen weights in {config.load_path}")
    return start

"""The variants of scripts/bench/step.py: models trained by Composer on the same batch."""

import argparse
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from composer import Trainer
from composer.core import Callback, DataSpec, State
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import Tensor

from scripts.bench import common
from scripts.bench.step_models import Batch, initial_model, transformers_batch
from train.callbacks.global_batch import GlobalBatch
from train.composer_model import DbrxForComposer
from train.hf.config_json import transformers_config
from train.models.config import ModelConfig


class Clock(Callback):
    """Measures the time from when the batch is on the device to the end of the optimizer's step."""

    def __init__(self, device: str) -> None:
        self.device = device

    def batch_start(self, state: State, logger: Logger) -> None:
        self.start = common.now(self.device)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.seconds = common.now(self.device) - self.start

    def after_loss(self, state: State, logger: Logger) -> None:
        loss: Any = state.loss
        self.loss = float(loss["lm"] if isinstance(loss, dict) else loss)


class Repeated:
    """A loader that repeats the same batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield dict(self.batch)


def trainer_step(model: ComposerModel, batch: Batch, callbacks: list[Callback], args: argparse.Namespace) -> Any:
    clock = Clock(args.device)
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(Repeated(batch)),
        optimizers=torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True),
        callbacks=[clock, *callbacks],
        device=args.device,
        precision=args.precision,
        device_train_microbatch_size=args.rows,
        progress_bar=False,
        log_to_console=False,
    )

    def step(microbatch: int = args.rows, count: bool = False) -> dict[str, float]:
        trainer.state.device_train_microbatch_size = microbatch
        for callback in callbacks:
            if isinstance(callback, GlobalBatch):
                callback.count_experts, callback.cost_printed = count, True
        trainer.fit(duration="1ba")
        return {"seconds": clock.seconds, "loss": clock.loss}

    return step


def prepared_model(args: argparse.Namespace) -> DbrxForComposer:
    """Prepare the process for the given args, and return the model."""
    warnings.filterwarnings("ignore")
    common.prepare_process(args.threads)
    config = common.model_config(args)
    return DbrxForComposer(config, initial_model(config))


def dropless(config: ModelConfig, batch: Batch, args: argparse.Namespace) -> Any:
    model = DbrxForComposer(config, initial_model(config))
    return trainer_step(model, batch, [GlobalBatch(config)], args)


class TransformersForComposer(ComposerModel):
    def __init__(self, model: transformers.DbrxForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Any:
        return self.model(**batch, use_cache=False)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return outputs.loss


def transformers_variant(config: ModelConfig, batch: Batch, args: argparse.Namespace) -> Any:
    """Return a training step with transformers' own model and loss, with SDPA and the same weights."""
    model = transformers.DbrxForCausalLM(transformers_config(config, attn_implementation="sdpa"))
    model.load_state_dict(initial_model(config).state_dict())
    return trainer_step(TransformersForComposer(model), transformers_batch(batch), [], args)

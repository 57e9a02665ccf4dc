"""What the bench of the training step compares: models under Composer, on the same batch."""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from composer import Trainer
from composer.core import Callback, DataSpec, State
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import Tensor

from data.mds.row import IGNORED
from scripts.bench import common
from train.callbacks.global_batch import GlobalBatch
from train.composer_model import DbrxForComposer
from train.hf.config_json import transformers_config
from train.models.config import FFNConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise

Batch = dict[str, Tensor]


def make_batch(args: argparse.Namespace) -> Batch:
    """Rows of documents of unequal length; every token is trained on but each document's first."""
    draw = torch.Generator().manual_seed(0)
    shape = (args.rows, args.max_seq_len)
    ids = torch.randint(0, args.vocab_size, shape, generator=draw)
    bounds = torch.stack([torch.randperm(shape[1] - 1, generator=draw)[: args.documents - 1] + 1 for _ in ids])
    document_ids = (torch.arange(shape[1])[None, :, None] >= bounds[:, None, :]).sum(-1)
    continues = torch.zeros(shape, dtype=torch.bool)
    continues[:, :-1] = document_ids[:, 1:] == document_ids[:, :-1]
    return {"input_ids": ids, "labels": torch.where(continues, ids.roll(-1, 1), IGNORED), "document_ids": document_ids}


def dense(config: ModelConfig) -> ModelConfig:
    """One expert as wide as all that a token is sent to."""
    ffn = config.ffn_config
    width = ffn.ffn_hidden_size * ffn.moe_top_k
    one = FFNConfig(ffn_hidden_size=width, moe_num_experts=1, moe_top_k=1, moe_loss_weight=0.0)
    fields = {name: getattr(config, name) for name in ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size")}
    return ModelConfig(**fields, attn_config=config.attn_config, ffn_config=one)


class Clock(Callback):
    """From the batch on the device to the end of the optimizer's step."""

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
    """The same batch again and again, as a loader."""

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


def initial_model(config: ModelConfig) -> DbrxForCausalLM:
    model = DbrxForCausalLM(config)
    initialise(model, config, seed=0)
    return model


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


def transformers_side(config: ModelConfig, batch: Batch, args: argparse.Namespace) -> Any:
    """transformers' own model and loss with SDPA, from the same weights."""
    model = transformers.DbrxForCausalLM(transformers_config(config, attn_implementation="sdpa"))
    model.load_state_dict(initial_model(config).state_dict())
    return trainer_step(TransformersForComposer(model), transformers_batch(batch), [], args)


def transformers_batch(batch: Batch) -> Batch:
    """The same rows in transformers' terms: a mask of blocks keeps documents apart, positions restart."""
    ids, documents = batch["input_ids"], batch["document_ids"]
    index = torch.arange(ids.shape[1])
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    sees = (documents[:, :, None] == documents[:, None, :]) & (index[:, None] >= index[None, :])
    least = torch.finfo(torch.float32).min
    return {
        "input_ids": ids,
        # transformers shifts labels itself.
        "labels": torch.where(starts, IGNORED, ids),
        "position_ids": index - torch.where(starts, index, 0).cummax(dim=1).values,
        "attention_mask": torch.where(sees, 0.0, least).unsqueeze(1),
    }

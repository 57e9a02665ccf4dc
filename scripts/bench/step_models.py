"""The batch and the models that the benchmarks of a training step use. Imports neither Composer nor transformers."""

import argparse

import torch
from torch import Tensor

from data.mds.row import IGNORED
from train.models.config import FFNConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise

Batch = dict[str, Tensor]


def make_batch(args: argparse.Namespace) -> Batch:
    """Return a batch whose rows contain documents of different lengths. Every token except the first of each document
    is trained on."""
    draw = torch.Generator().manual_seed(0)
    shape = (args.rows, args.max_seq_len)
    ids = torch.randint(0, args.vocab_size, shape, generator=draw)
    bounds = torch.stack([torch.randperm(shape[1] - 1, generator=draw)[: args.documents - 1] + 1 for _ in ids])
    document_ids = (torch.arange(shape[1])[None, :, None] >= bounds[:, None, :]).sum(-1)
    continues = torch.zeros(shape, dtype=torch.bool)
    continues[:, :-1] = document_ids[:, 1:] == document_ids[:, :-1]
    return {"input_ids": ids, "labels": torch.where(continues, ids.roll(-1, 1), IGNORED), "document_ids": document_ids}


def dense(config: ModelConfig) -> ModelConfig:
    """Return the config of a dense model: it has one expert, which is as wide as all active experts of a token
    combined."""
    ffn = config.ffn_config
    width = ffn.ffn_hidden_size * ffn.moe_top_k
    one = FFNConfig(ffn_hidden_size=width, moe_num_experts=1, moe_top_k=1, moe_loss_weight=0.0)
    fields = {name: getattr(config, name) for name in ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size")}
    return ModelConfig(**fields, attn_config=config.attn_config, ffn_config=one)


def initial_model(config: ModelConfig) -> DbrxForCausalLM:
    model = DbrxForCausalLM(config)
    initialise(model, config, seed=0)
    return model


def transformers_batch(batch: Batch) -> Batch:
    """Return the same rows in the format of transformers: a block-diagonal mask separates documents, and positions
    restart in each document."""
    ids, documents = batch["input_ids"], batch["document_ids"]
    index = torch.arange(ids.shape[1])
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    sees = (documents[:, :, None] == documents[:, None, :]) & (index[:, None] >= index[None, :])
    least = torch.finfo(torch.float32).min
    return {
        "input_ids": ids,
        # transformers shifts the labels itself.
        "labels": torch.where(starts, IGNORED, ids),
        "position_ids": index - torch.where(starts, index, 0).cummax(dim=1).values,
        "attention_mask": torch.where(sees, 0.0, least).unsqueeze(1),
    }

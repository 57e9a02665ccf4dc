"""Tells every microbatch how large the global batch is, so that its loss is its exact part of the whole."""

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from train.models.config import ModelConfig
from train.models.dbrx import IGNORED


class GlobalBatch(Callback):
    """Adds to the batch, one value a row so that any split keeps them:

    - `trained_tokens` and `routed_tokens`: counts over the global batch, all ranks;
    - `device_rows`: rows of this rank's batch, by which Composer weighs a microbatch;
    - `expert_counts` [L, E], with `moe_lbl_scope: batch` alone: assignments to the experts over the global batch. With
      several microbatches they are only known after a forward without gradient over all of them, about a third more
      FLOPs; the random state is put back, so that dropout and jitter fall as they will in the real forward.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.count_experts = config.ffn_config.moe_lbl_scope == "batch" and config.ffn_config.moe_loss_weight > 0

    def batch_start(self, state: State, logger: Logger) -> None:
        batch = state.batch
        n_rows = batch["input_ids"].shape[0]
        counts = torch.stack(((batch["labels"] != IGNORED).sum(), (batch["document_ids"] >= 0).sum()))
        counts = state.device.tensor_to_device(counts)
        dist.all_reduce(counts)
        batch["trained_tokens"], batch["routed_tokens"] = (count.expand(n_rows) for count in counts)
        batch["device_rows"] = torch.full((n_rows,), n_rows)
        if self.count_experts:
            expert_counts = self._expert_counts(state)
            batch["expert_counts"] = expert_counts.expand(n_rows, *expert_counts.shape)

    @staticmethod
    def _expert_counts(state: State) -> Tensor:
        # The same cuts as Composer's, and the same draws: only forwards draw, so the order of calls does not matter.
        device, batch = state.device, state.batch
        size = state.device_train_microbatch_size
        assert isinstance(size, int)
        cuda = [torch.cuda.current_device()] if device.name == "gpu" else []
        counts = []
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            for start in range(0, batch["input_ids"].shape[0], size):
                microbatch = {name: tensor[start : start + size] for name, tensor in batch.items()}
                counts.append(state.model(device.batch_to_device(microbatch)).counts_LE)
        total = torch.stack(counts).sum(0)
        dist.all_reduce(total)
        return total

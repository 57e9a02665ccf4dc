"""Adds the size of the global batch to every microbatch, so that the losses of the microbatches add up exactly to the
loss of the batch."""

import torch
from composer.core import Callback, State, get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from data.base import console
from data.mds.row import IGNORED
from train.models.config import ModelConfig


class GlobalBatch(Callback):
    """Adds these values to the batch, repeated for each row, so that they are kept when the batch is split:

    - `trained_tokens` and `routed_tokens`: counts over the global batch on all ranks;
    - `device_rows`: rows of this rank's batch, by which Composer weights a microbatch;
    - `expert_counts` [L, E], with `moe_lbl_scope: batch` and several microbatches: number of assignments to each expert
      over the global batch. Computing the counts requires an extra forward pass without gradients over all
      microbatches. The random state is restored afterwards, so that dropout and jitter are the same in the real forward
      pass.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.count_experts = config.ffn_config.moe_lbl_scope == "batch" and config.ffn_config.moe_loss_weight > 0
        self.cost_printed = False

    def batch_start(self, state: State, logger: Logger) -> None:
        batch, size = state.batch, state.device_train_microbatch_size
        n_rows = batch["input_ids"].shape[0]
        assert isinstance(size, int)
        counts = torch.stack(((batch["labels"] != IGNORED).sum(), (batch["document_ids"] >= 0).sum()))
        counts = state.device.tensor_to_device(counts)
        dist.all_reduce(counts)
        batch["trained_tokens"], batch["routed_tokens"] = (count.expand(n_rows) for count in counts)
        batch["device_rows"] = torch.full((n_rows,), n_rows)
        self.print_cost(n_rows, size)
        if self.count_experts and size < n_rows:
            expert_counts = self._expert_counts(state, size)
            batch["expert_counts"] = expert_counts.expand(n_rows, *expert_counts.shape)

    def print_cost(self, n_rows: int, microbatch_size: int) -> None:
        """Log the cost of `moe_lbl_scope: batch` once."""
        if not self.count_experts or self.cost_printed:
            return
        self.cost_printed = True
        cost = "nothing, because a step has only one microbatch"
        if microbatch_size < n_rows:
            number = -(-n_rows // microbatch_size)
            cost = f"an extra forward pass over the {number} microbatches of each step: a third more FLOPs"
        console.logger.info(f"moe_lbl_scope: batch costs {cost}")

    @staticmethod
    def _expert_counts(state: State, size: int) -> Tensor:
        # The batch is split in the same way as in Composer. Only forward passes draw random numbers, so this extra pass
        # and the real forward pass draw the same numbers.
        device, batch = state.device, state.batch
        cuda = [torch.cuda.current_device()] if device.name == "gpu" else []
        precision = get_precision_context(state.precision, state.precision_config)
        counts = []
        with torch.no_grad(), precision, torch.random.fork_rng(devices=cuda):
            for start in range(0, batch["input_ids"].shape[0], size):
                # The labels are left out, so that the model does not compute the output head.
                names = ("input_ids", "document_ids")
                microbatch = {name: batch[name][start : start + size] for name in names}
                counts.append(state.model(device.batch_to_device(microbatch)).counts_LE)
        total = torch.stack(counts).sum(0)
        dist.all_reduce(total)
        return total

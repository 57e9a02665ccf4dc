"""DBRX as Composer sees it: the loss of a step, evaluation metrics, FLOPs. The one bridge between model and Trainer."""

from typing import Any

import torch
from composer.models import ComposerModel
from composer.utils import dist
from torch import Tensor
from torchmetrics import Metric

from train.models.config import ModelConfig
from train.models.dbrx import IGNORED, DbrxForCausalLM, DbrxOutput
from train.models.moe import load_balancing_loss
from train.plan import flops_per_token

Batch = dict[str, Tensor]


class LanguageCrossEntropy(Metric):
    """Mean loss over all trained tokens seen, however they fell into batches and ranks."""

    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_sum: Tensor
        self.tokens: Tensor
        self.add_state("loss_sum", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, losses: Tensor, trained: Tensor) -> None:
        self.loss_sum += losses.double().sum()
        self.tokens += trained.sum()

    def compute(self) -> Tensor:
        return self.loss_sum / self.tokens


class LanguagePerplexity(LanguageCrossEntropy):
    def compute(self) -> Tensor:
        return super().compute().exp()


class DbrxForComposer(ComposerModel):
    def __init__(self, config: ModelConfig, model: DbrxForCausalLM) -> None:
        super().__init__()
        self.config = config
        self.model = model

    def forward(self, batch: Batch) -> DbrxOutput:
        return self.model(batch["input_ids"], batch["labels"], batch["document_ids"])

    def eval_forward(self, batch: Batch, outputs: DbrxOutput | None = None) -> DbrxOutput:
        return outputs if outputs is not None else self.forward(batch)

    def loss(  # pyright: ignore[reportIncompatibleMethodOverride]: Composer takes dicts, its annotation does not
        self, outputs: DbrxOutput, batch: Batch
    ) -> dict[str, Tensor]:
        """This microbatch's part of the mean over the global batch's trained (for the router: routed) tokens.

        Composer multiplies by the microbatch's share of the device's rows and averages over ranks; both are divided
        out, so that parts add up to the same step for any number of ranks and microbatches. Needs what
        callbacks.GlobalBatch adds to the batch.
        """
        assert outputs.losses_BS is not None
        n_rows = batch["input_ids"].shape[0]
        scale = (dist.get_world_size() * batch["device_rows"][0].double() / n_rows).to(outputs.losses_BS.dtype)
        lm = scale * outputs.losses_BS.sum() / batch["trained_tokens"][0].clamp(min=1)
        balance = scale * self.config.ffn_config.moe_loss_weight * self._load_balancing(outputs, batch)
        return {"total": lm + balance, "lm": lm, "load_balancing": balance}

    def _load_balancing(self, outputs: DbrxOutput, batch: Batch) -> Tensor:
        ffn = self.config.ffn_config
        counts_LE = outputs.counts_LE
        if ffn.moe_lbl_scope == "batch":
            counts_LE = batch["expert_counts"][0] if "expert_counts" in batch else counts_LE
        elif ffn.moe_lbl_scope == "ranks" and ffn.moe_loss_weight > 0:
            counts_LE = counts_LE.clone()
            dist.all_reduce(counts_LE)
        # Every token is counted moe_top_k times in every layer.
        counted = (counts_LE[0].sum() / ffn.moe_top_k).clamp(min=1)
        routed = batch["routed_tokens"][0].clamp(min=1)
        return load_balancing_loss(outputs.prob_sums_LE, counts_LE, counted, routed, ffn.moe_top_k)

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        if is_train:
            return {}
        return {"LanguageCrossEntropy": LanguageCrossEntropy(), "LanguagePerplexity": LanguagePerplexity()}

    def update_metric(self, batch: Batch, outputs: DbrxOutput, metric: Metric) -> None:
        metric.update(outputs.losses_BS, batch["labels"] != IGNORED)

    def flops_per_batch(self, batch: Batch) -> int:
        rows, length = batch["input_ids"].shape
        return rows * length * flops_per_token(self.config, length)

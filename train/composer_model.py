"""DBRX as a ComposerModel: the loss of a step and evaluation metrics. This module is the only link between the model
and Composer's Trainer."""

from typing import Any

import torch
from composer.models import ComposerModel
from composer.utils import dist
from torch import Tensor
from torchmetrics import Metric

from data.mds.row import IGNORED
from train.models.config import ModelConfig
from train.models.dbrx import DbrxForCausalLM, DbrxOutput
from train.models.moe import load_balancing_loss, router_z_loss

Batch = dict[str, Tensor]


class LanguageCrossEntropy(Metric):
    """Mean loss over all trained tokens. It does not depend on how the tokens are split into batches and over ranks."""

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


class LanguageTokenAccuracy(Metric):
    """Fraction of all trained tokens whose label has the highest logit."""

    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.correct: Tensor
        self.tokens: Tensor
        self.add_state("correct", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("tokens", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, correct: Tensor, trained: Tensor) -> None:
        self.correct += correct.sum()
        self.tokens += trained.sum()

    def compute(self) -> Tensor:
        return self.correct / self.tokens


class DbrxForComposer(ComposerModel):
    def __init__(self, config: ModelConfig, model: DbrxForCausalLM) -> None:
        super().__init__()
        self.config = config
        self.model = model

    def forward(self, batch: Batch) -> DbrxOutput:
        """Run the model. For a batch without labels, the head is not computed, and only router statistics are
        returned."""
        return self.model(batch["input_ids"], batch.get("labels"), batch["document_ids"])

    def eval_forward(self, batch: Batch, outputs: DbrxOutput | None = None) -> DbrxOutput:
        return outputs if outputs is not None else self.forward(batch)

    def loss(  # pyright: ignore[reportIncompatibleMethodOverride]: Composer accepts dicts, but its annotation does not
        self, outputs: DbrxOutput, batch: Batch
    ) -> dict[str, Tensor]:
        """This microbatch's contribution to the mean loss over the trained tokens of the global batch. (For router
        losses, the mean is over the routed tokens of the global batch.)

        Composer multiplies the loss by the microbatch's share of the device's rows, and averages over ranks. This
        method divides by both factors, so that the sum of all contributions does not depend on the number of ranks and
        microbatches. Requires the keys that callbacks/global_batch.py adds to the batch.
        """
        assert outputs.losses_BS is not None
        n_rows = batch["input_ids"].shape[0]
        scale = (dist.get_world_size() * batch["device_rows"][0].double() / n_rows).to(outputs.losses_BS.dtype)
        lm = scale * outputs.losses_BS.sum() / batch["trained_tokens"][0].clamp(min=1)
        ffn = self.config.ffn_config
        losses = {"lm": lm, "load_balancing": scale * ffn.moe_loss_weight * self._load_balancing(outputs, batch)}
        if ffn.moe_zloss_weight > 0:
            z = router_z_loss(outputs.z_sums_L, batch["routed_tokens"][0].clamp(min=1))
            losses["router_z"] = scale * ffn.moe_zloss_weight * z
        return {"total": torch.stack(list(losses.values())).sum(), **losses}

    def _load_balancing(self, outputs: DbrxOutput, batch: Batch) -> Tensor:
        ffn = self.config.ffn_config
        counts_LE = outputs.counts_LE
        if "expert_counts" in batch:
            counts_LE = batch["expert_counts"][0]
        elif ffn.moe_lbl_scope != "microbatch" and ffn.moe_loss_weight > 0:
            # If each rank has a single microbatch, the microbatches of all ranks form the global batch.
            counts_LE = counts_LE.clone()
            dist.all_reduce(counts_LE)
        # Every token is counted moe_top_k times in every layer.
        counted = (counts_LE[0].sum() / ffn.moe_top_k).clamp(min=1)
        routed = batch["routed_tokens"][0].clamp(min=1)
        return load_balancing_loss(outputs.prob_sums_LE, counts_LE, counted, routed, ffn.moe_top_k)

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        if is_train:
            return {}
        metrics = (LanguageCrossEntropy(), LanguagePerplexity(), LanguageTokenAccuracy())
        return {type(metric).__name__: metric for metric in metrics}

    def update_metric(self, batch: Batch, outputs: DbrxOutput, metric: Metric) -> None:
        assert outputs.losses_BS is not None
        assert outputs.correct_BS is not None
        measured_BS = outputs.correct_BS if isinstance(metric, LanguageTokenAccuracy) else outputs.losses_BS
        metric.update(measured_BS, batch["labels"] != IGNORED)

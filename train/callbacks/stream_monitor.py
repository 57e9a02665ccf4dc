"""Logs tokens, shares and loss of each stream of a mixture in every step."""

import json
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from data.base import console
from data.mds.row import IGNORED
from data.mixing.row_plan import RowPlan
from train.models.dbrx import DbrxOutput


class StreamMonitor(Callback):
    """Logs for each stream, under streams/NAME/:

    - `loss`: mean loss over the trained tokens of the stream in the step; not logged if the step has no such tokens;
    - `tokens`: tokens of the stream since the start of the run, excluding padding;
    - `passes`: epochs of the stream, that is, the number of rows drawn divided by the number of rows in the stream;
    - `share`, `planned_share`: the stream's share of the step's rows;
    - `token_share`, `planned_token_share`: the stream's share of the step's tokens, excluding padding; `proportions`
      sets this share. The planned share assumes that each row has the mean length of the rows of its stream.

    Also logs streams/plan_changes, the number of times that the run was resumed with a changed plan.

    The start of each stage is shown on the console. No metrics are logged for a single stream without a name, because
    its loss equals that of the run; only its tokens are counted. Batches must have the key `streams` (see
    data/loading/batches.py).
    """

    def __init__(self, plan: RowPlan, rows_of: dict[str, int]) -> None:
        self.plan, self.rows_of = plan, rows_of
        self.named = "" not in rows_of
        self.tokens: dict[str, int] = {}
        self._sums_S3: Tensor | None = None
        self._stage: str | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        batch = state.timestamp.batch.value
        stage = self.plan.stage(batch)
        if self.named and stage != self._stage:
            mix = zip(self.plan.names, self.plan.token_shares(batch).tolist(), strict=True)
            shares = ", ".join(f"{name} {share:.1%}" for name, share in mix)
            console.logger.info(
                f"batch {batch}: {f'stage {stage}' if stage else 'one mixture'} (share of tokens: {shares})"
            )
        self._stage = stage
        self._sums_S3 = None

    def after_loss(self, state: State, logger: Logger) -> None:
        """Add the loss, the trained tokens and the tokens of each stream in the current microbatch."""
        batch, outputs = state.batch, state.outputs
        assert isinstance(outputs, DbrxOutput)
        assert outputs.losses_BS is not None
        losses_BS = outputs.losses_BS.detach().double()
        of_row = torch.stack(
            (
                losses_BS.sum(1),
                (batch["labels"] != IGNORED).sum(1).double(),
                (batch["document_ids"] >= 0).sum(1).double(),
            )
        )
        sums_S3 = of_row.new_zeros(len(self.plan.names), 3).index_add_(0, batch["streams"], of_row.T)
        self._sums_S3 = sums_S3 if self._sums_S3 is None else self._sums_S3 + sums_S3

    def batch_end(self, state: State, logger: Logger) -> None:
        assert self._sums_S3 is not None
        dist.all_reduce(self._sums_S3)
        # At this point, Composer's timestamp already counts this batch.
        batch = state.timestamp.batch.value - 1
        before, after = self.plan.counts(batch), self.plan.counts(batch + 1)
        metrics: dict[str, float] = {"streams/plan_changes": len(self.plan.segments) - 1}
        planned, planned_tokens = self.plan.shares(batch).tolist(), self.plan.token_shares(batch).tolist()
        all_tokens = self._sums_S3[:, 2].sum().item()
        for number, name in enumerate(self.plan.names):
            loss, trained, tokens = self._sums_S3[number].tolist()
            self.tokens[name] = self.tokens.get(name, 0) + int(tokens)
            metrics[f"streams/{name}/tokens"] = self.tokens[name]
            metrics[f"streams/{name}/passes"] = after[number].item() / self.rows_of[name]
            metrics[f"streams/{name}/share"] = (after - before)[number].item() / self.plan.global_batch_size
            metrics[f"streams/{name}/planned_share"] = planned[number]
            metrics[f"streams/{name}/token_share"] = tokens / all_tokens
            metrics[f"streams/{name}/planned_token_share"] = planned_tokens[number]
            if trained:
                metrics[f"streams/{name}/loss"] = loss / trained
        if self.named:
            logger.log_metrics(metrics)

    def state_dict(self) -> dict[str, Any]:
        # The counts are stored as one string, so that the format does not depend on the number of streams.
        return {"tokens": json.dumps(self.tokens)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tokens = json.loads(state["tokens"])

"""Functions that are called in the processes of a run to cause a fault in one of its batches."""

import os
import signal
import time
from collections.abc import Callable, Collection
from typing import Any

BATCH = 3
"""The batch in which the fault occurs. Batches are counted from 0, so three batches are complete before it."""


def in_batch(ranks: Collection[int], act: Callable[[], object]) -> None:
    """On each of these ranks, call act() once, when BATCH begins."""
    from train.callbacks.stream_monitor import StreamMonitor

    real = StreamMonitor.batch_start

    def batch_start(self: Any, state: Any, logger: Any) -> None:
        if state.timestamp.batch.value == BATCH and _rank() in ranks:
            act()
        real(self, state, logger)

    StreamMonitor.batch_start = batch_start


def send(number: int) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), number)


def fail(error: Exception) -> None:
    raise error


def scaled_loss(ranks: Collection[int], factor: float, first: int = BATCH, count: int = 1) -> None:
    """On these ranks, multiply the loss of `count` batches, starting with batch `first`, by a factor."""
    from train.callbacks.stream_monitor import StreamMonitor
    from train.composer_model import DbrxForComposer

    now = [0]
    real_start, real_loss = StreamMonitor.batch_start, DbrxForComposer.loss

    def batch_start(self: Any, state: Any, logger: Any) -> None:
        now[0] = state.timestamp.batch.value
        real_start(self, state, logger)

    def loss(self: Any, outputs: Any, batch: Any) -> Any:
        losses = real_loss(self, outputs, batch)
        if first <= now[0] < first + count and _rank() in ranks:
            losses["total"] = losses["total"] * factor
        return losses

    StreamMonitor.batch_start, DbrxForComposer.loss = batch_start, loss


def bad_gradient(ranks: Collection[int], value: float) -> None:
    """On these ranks, set one element of a gradient to this value, after the gradients were reduced over the ranks."""
    from torch.distributed.tensor import DTensor

    from train.callbacks.stream_monitor import StreamMonitor

    def after_backward(self: Any, state: Any, logger: Any) -> None:
        if state.timestamp.batch.value == BATCH and _rank() in ranks:
            grad = next(param.grad for param in state.model.parameters() if param.grad is not None)
            local = grad.to_local() if isinstance(grad, DTensor) else grad
            local.view(-1)[0] = value

    StreamMonitor.after_backward = after_backward


def one_expert() -> None:
    """In every layer, assign every token to the first expert, in addition to its other top_k - 1 experts."""
    from train.models.moe import Router

    real = Router.forward

    def forward(self: Any, x_TD: Any) -> Any:
        routing = real(self, x_TD)
        experts_TK = routing.experts_TK.clone()
        without_T = (experts_TK != 0).all(-1)
        experts_TK[without_T, -1] = 0
        return routing._replace(experts_TK=experts_TK)

    Router.forward = forward


def dead_expert() -> None:
    """Assign no tokens to the first expert of each layer."""
    from train.models.moe import Router

    real = Router.forward

    def forward(self: Any, x_TD: Any) -> Any:
        routing = real(self, x_TD)
        others_TE = routing.probs_TE.detach().clone()
        others_TE[:, 0] = -1
        return routing._replace(experts_TK=others_TE.topk(self.moe_top_k, dim=-1).indices)

    Router.forward = forward


def in_worker(ranks: Collection[int], number: int) -> None:
    """On these ranks, send a signal to the data loader worker that is about to read BATCH."""
    from data.loading.batches import TrainBatches

    real, training = TrainBatches.__getitem__, os.getpid()

    def getitem(self: Any, batch: int) -> Any:
        if batch == BATCH and _rank() in ranks and os.getpid() != training:
            os.kill(os.getpid(), number)
        return real(self, batch)

    _replace(TrainBatches, "__getitem__", getitem)


def in_a_save(ranks: Collection[int], number: int, seconds: float) -> None:
    """On these ranks, send a signal to the process while it writes the checkpoint after BATCH, then pause the write for
    this many seconds."""
    from train.checkpoint.storage.writer import HashingWriter

    real = HashingWriter.write_data

    def write_data(self: Any, *arguments: Any) -> Any:
        if f"ba{BATCH + 1}" in str(self.path) and _rank() in ranks:
            os.kill(os.getpid(), number)
            time.sleep(seconds)
        return real(self, *arguments)

    _replace(HashingWriter, "write_data", write_data)


def _replace(owner: type, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


STOP, KILL = signal.SIGSTOP, signal.SIGKILL

"""The probe: a fixed batch whose routing is compared between measurements.

Shapes: R rows, S positions, T tokens of the probe, L layers, E experts, K experts per token.
"""

import base64
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from composer.core import State, get_precision_context
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from train.models.moe import Router, Routing


class Probe:
    """A probe: tokens of the run's first rows, the same on every rank, and the experts that were selected for them in
    the last measurement. Its state is JSON-serializable."""

    def __init__(self, n_tokens: int) -> None:
        """n_tokens: maximum number of tokens. The probe never has more tokens than a microbatch."""
        self._n_tokens = n_tokens
        self._rows: list[tuple[list[int], list[int]]] = []
        """Token ids and document ids of each row, without padding."""
        self._chosen: np.ndarray | None = None
        """bool [L, T, E]: whether the expert was selected for the token."""

    @property
    def is_empty(self) -> bool:
        return not self._rows

    def measure(self, state: State, model: nn.Module) -> np.ndarray | None:
        """Return [L]: for each layer, the fraction of selected experts that are the same as in the previous call.
        Returns None in the first call. Every rank must call this between the backward pass of a step and the next
        forward pass.

        Does not change the model's weights, gradients or mode, or the random state.
        """
        batch, size = state.batch, state.device_train_microbatch_size
        assert isinstance(size, int)
        if self.is_empty:
            self._take(batch, size)
        # If the probe has no more rows than a microbatch, this is the shape of a microbatch, for which FlexAttention is
        # already compiled.
        shape = (max(size, len(self._rows)), batch["input_ids"].shape[1])
        before, self._chosen = self._chosen, self._route(state, model, shape)
        if before is None or before.shape != self._chosen.shape:
            return None
        return (before & self._chosen).sum((1, 2)) / self._chosen.sum((1, 2)).clip(min=1)

    def _take(self, batch: Mapping[str, Tensor], size: int) -> None:
        """Create the probe from the first tokens of rank 0's first microbatch."""
        rows, left = [], self._n_tokens
        for ids_S, documents_S in zip(batch["input_ids"][:size], batch["document_ids"][:size], strict=True):
            kept = (documents_S >= 0).nonzero().flatten()[:left]
            left -= len(kept)
            rows.append((ids_S[kept].tolist(), documents_S[kept].tolist()))
        taken = [[row for row in rows if row[0]]]
        dist.broadcast_object_list(taken, src=0)
        self._rows = taken[0]

    @torch.no_grad()
    def _route(self, state: State, model: nn.Module, shape: tuple[int, int]) -> np.ndarray:
        input_ids, document_ids = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -1)
        for row, (ids, documents) in enumerate(self._rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            document_ids[row, : len(ids)] = torch.tensor(documents)
        batch = state.device.batch_to_device({"input_ids": input_ids, "document_ids": document_ids})
        was_training = model.training
        model.eval()
        try:
            with _choices(model) as chosen, get_precision_context(state.precision, state.precision_config):
                model(**batch)
        finally:
            model.train(was_training)
            _reshard(model)
        return torch.stack(chosen).cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"n_tokens": self._n_tokens, "rows": self._rows}
        if self._chosen is not None:
            packed = zlib.compress(np.packbits(self._chosen).tobytes())
            state |= {"chosen": base64.b64encode(packed).decode(), "shape": self._chosen.shape}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state. A state that was saved with a different n_tokens is ignored, and the next measurement uses
        a new probe."""
        if state["n_tokens"] != self._n_tokens:
            return
        self._rows = [(ids, documents) for ids, documents in state["rows"]]
        if "chosen" in state:
            packed = np.frombuffer(zlib.decompress(base64.b64decode(state["chosen"])), dtype=np.uint8)
            shape = tuple(state["shape"])
            self._chosen = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)


def _reshard(model: nn.Module) -> None:
    """Free the gathered weights that FSDP2 keeps after a forward pass. Otherwise, the next step would use weights from
    before the optimizer's update."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def _choices(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within this context, collect a bool tensor [T, E] for each layer that is computed. An element is True if the
    expert was selected for the token."""
    chosen: list[Tensor] = []

    def note(module: nn.Module, args: Any, routing: Routing) -> None:
        chosen.append(torch.zeros_like(routing.probs_TE, dtype=torch.bool).scatter_(1, routing.experts_TK, True))

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, Router)]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()

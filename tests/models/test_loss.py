"""The chunked head against the plain one: losses, accuracy, gradients and memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.mds.row import IGNORED
from scripts.bench.watch import Watch
from train.models import loss
from train.models.loss import head_losses

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
B, S, D, V = 3, 200, 16, 40


@pytest.fixture(autouse=True)
def _smallest_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_CHUNK_NUMEL", dict.fromkeys(("cpu", "cuda"), 1))


def plain(x_TD: Tensor, weight_VD: Tensor, labels_BS: Tensor, place_T: Tensor) -> tuple[Tensor, Tensor]:
    logits_TV = x_TD @ weight_VD.t()
    rows = logits_TV.new_zeros(labels_BS.numel(), weight_VD.shape[0]).index_copy(0, place_T, logits_TV)
    labels_P = labels_BS.flatten()
    losses_P = F.cross_entropy(rows, labels_P, reduction="none", ignore_index=IGNORED)
    return losses_P.view_as(labels_BS), (rows.argmax(1) == labels_P).view_as(labels_BS)


def inputs(device: str, dtype: torch.dtype = torch.float64, trained: float = 0.6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    place_T = torch.randperm(B * S, generator=generator)[: B * S * 9 // 10].sort().values
    labels_P = torch.full((B * S,), IGNORED)
    labels_P[place_T] = torch.randint(0, V, place_T.shape, generator=generator)
    labels_P[torch.rand(B * S, generator=generator) > trained] = IGNORED
    x_TD, weight_VD = (torch.randn(n, D, generator=generator, dtype=dtype) for n in (len(place_T), V))
    tensors = {"x_TD": x_TD, "weight_VD": weight_VD, "labels_BS": labels_P.view(B, S), "place_T": place_T}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def gradients(
    function: Any, tensors: dict[str, Tensor], factor_BS: Tensor | None, needs: tuple[str, ...] = ("x_TD", "weight_VD")
) -> tuple[Tensor, ...]:
    """Losses, correct and gradients of the sum of all losses, weighted by factor_BS if given."""
    tensors = {name: t.clone().requires_grad_(name in needs) for name, t in tensors.items()}
    losses_BS, correct_BS = function(**tensors)
    total = 0.25 * losses_BS.sum() if factor_BS is None else (losses_BS * factor_BS).sum()
    return losses_BS.detach(), correct_BS, *torch.autograd.grad(total, [tensors[name] for name in needs])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighed", [False, True], ids=["one factor", "a factor a token"])
@pytest.mark.parametrize(
    "needs", [("x_TD", "weight_VD"), ("x_TD",), ("weight_VD",)], ids=["", "frozen head", "frozen x"]
)
def test_losses_accuracy_and_gradients_equal_the_plain_ones(device: str, weighed: bool, needs: tuple[str, ...]) -> None:
    tensors = inputs(device)
    factor_BS = torch.randn(B, S, dtype=torch.float64, device=device) if weighed else None
    mine, expected = (gradients(function, tensors, factor_BS, needs) for function in (head_losses, plain))
    assert (tensors["labels_BS"] != IGNORED).sum() > 2 * 128, "several chunks"
    assert torch.equal(mine[1], expected[1] & (tensors["labels_BS"] != IGNORED))
    for a, b in zip((mine[0], *mine[2:]), (expected[0], *expected[2:]), strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


@pytest.mark.parametrize("device", DEVICES)
def test_without_a_trained_token_everything_is_zero(device: str) -> None:
    losses_BS, correct_BS, *grads = gradients(head_losses, inputs(device, trained=-1.0), None)
    assert not losses_BS.any()
    assert not correct_BS.any()
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_and_autocast_sum_in_fp32(device: str) -> None:
    tensors = inputs(device, torch.float32)
    exact = gradients(plain, tensors, None)
    with torch.autocast(device, torch.bfloat16):
        mine, expected = (gradients(function, tensors, None) for function in (head_losses, plain))
    assert mine[0].dtype == mine[2].dtype == mine[3].dtype == torch.float32
    for a, b, c in zip(mine[::2], expected[::2], exact[::2], strict=True):
        # Both round logits to bf16; ours is no less accurate than torch's.
        assert (a - c).norm() <= 1.1 * (b - c).norm() + 1e-6 * c.norm()
        assert (a - b).norm() <= 0.03 * b.norm()


def test_memory_is_that_of_a_chunk() -> None:
    T, vocab = 128 * 64, 3000
    tensors = {
        "x_TD": torch.randn(T, 8),
        "weight_VD": torch.randn(vocab, 8),
        "labels_BS": torch.randint(0, vocab, (1, T)),
        "place_T": torch.arange(T),
    }
    logits_nbytes = T * vocab * 4
    with Watch() as watch:
        gradients(head_losses, tensors, None)
    # Without chunks, the logits, their softmax and its gradient are in memory together.
    assert watch.peak < 0.05 * logits_nbytes
    assert watch.gemms == 3 * 64


def test_no_gemm_is_computed_that_is_not_needed() -> None:
    chunks = -(-int((inputs("cpu")["labels_BS"] != IGNORED).sum()) // 128)
    costs = []
    for needs in (("x_TD",), ("x_TD", "weight_VD"), ("weight_VD",)):
        with Watch() as watch:
            gradients(head_losses, inputs("cpu"), None, needs)
        costs.append(watch.gemms)
    assert costs == [2 * chunks, 3 * chunks, 2 * chunks]

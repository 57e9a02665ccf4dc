"""DBRX against transformers' DbrxForCausalLM with the same weights: logits, gradients and intermediate results.

Differences are max|difference| / max|reference| per tensor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.helpers.models import EVERY_EXPERT, SHAPES, VOCAB, make_model, relative
from train.hf.config_json import transformers_config
from train.models.dbrx import DbrxForCausalLM

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LENGTH = 21


CASES = [(shape, False) for shape in SHAPES] + [(shape, True) for shape in SHAPES if shape != EVERY_EXPERT]
"""If every token goes to every expert, no expert can be idle."""


def transformers_twin(model: DbrxForCausalLM) -> nn.Module:
    param = next(model.parameters())
    twin = transformers.DbrxForCausalLM(transformers_config(model.config, attn_implementation="sdpa"))
    twin = twin.to(param.device, param.dtype)
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin.eval()


@contextmanager
def full_precision_router() -> Iterator[None]:
    """transformers' router computes softmax in float32 for every dtype, so that a comparison in fp64 would only measure
    its rounding. (Its eager attention does the same, its SDPA does not.)"""
    softmax = torch.Tensor.softmax

    def in_own_dtype(self: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return softmax(self, dim, dtype=self.dtype if self.dtype == torch.float64 else dtype)

    with mock.patch.object(torch.Tensor, "softmax", in_own_dtype):
        yield


def tokens(device: str = "cpu") -> tuple[Tensor, Tensor]:
    ids, labels = torch.randint(0, VOCAB, (2, 2, LENGTH), generator=torch.Generator().manual_seed(1)).to(device)
    return ids, labels


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize(("shape", "idle"), CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_logits_and_all_gradients_are_those_of_transformers(
    shape: str, dtype: torch.dtype, bound: float, idle: bool, device: str
) -> None:
    model = make_model(SHAPES[shape], dtype, device)
    if idle:
        leave_idle(model, expert=1)
    twin, (ids, labels) = transformers_twin(model), tokens(device)
    out = model(ids, labels, return_logits=True)
    with full_precision_router():
        twin_logits = twin(ids).logits
        nn.functional.cross_entropy(twin_logits.flatten(0, 1), labels.flatten()).backward()
    out.losses_BS.mean().backward()
    assert bool(out.counts_LE[:, 1].any()) is not idle
    assert relative(out.logits_BSV, twin_logits) < bound
    twin_params = dict(twin.named_parameters())
    for name, param in model.named_parameters():
        assert relative(param.grad, twin_params[name].grad) < bound, name


def leave_idle(model: DbrxForCausalLM, expert: int) -> None:
    """Gives all tokens a common component that the router of this expert scores low."""
    embeddings = model.transformer.wte.weight.data
    common_D = torch.where(torch.arange(embeddings.shape[1], device=embeddings.device) % 2 == 0, 1.0, -1.0)
    embeddings += common_D
    for block in model.transformer.blocks:
        block.ffn.router.layer.weight.data[expert] = -common_D


def test_hidden_states_and_router_logits_are_those_of_transformers() -> None:
    model = make_model(SHAPES["plain"], torch.float64)
    twin, (ids, _) = transformers_twin(model), tokens()
    out = model(ids, return_hidden_states=True, return_router_logits=True)
    with full_precision_router():
        expected = twin(ids, output_hidden_states=True, output_router_logits=True)
    assert len(out.hidden_states_BSD) == len(expected.hidden_states) == 3
    for mine, theirs in zip(out.hidden_states_BSD, expected.hidden_states, strict=True):
        assert relative(mine, theirs) < 1e-10
    for mine, theirs in zip(out.router_logits_BSE, expected.router_logits, strict=True):
        # transformers 4 returns probabilities under the name router logits.
        theirs = theirs.flatten(0, -2)
        probs = (
            theirs if theirs.min() >= 0 and torch.allclose(theirs.sum(-1), theirs.new_ones(())) else theirs.softmax(-1)
        )
        assert relative(mine.softmax(-1).flatten(0, 1), probs) < 1e-10


def test_results_that_were_not_requested_are_not_kept() -> None:
    model, (ids, labels) = make_model(SHAPES["plain"], torch.float32), tokens()
    out = model(ids, labels)
    assert out.logits_BSV is out.hidden_states_BSD is out.router_logits_BSE is None
    assert model(ids).losses_BS is None
    assert model(ids).correct_BS is None


def test_intermediate_results_of_a_packed_row_are_at_their_tokens() -> None:
    model, (ids, _) = make_model(SHAPES["plain"], torch.float64), tokens()
    documents = torch.tensor([[0] * 9 + [-1] * 12, [0] * 21])
    out = model(ids, document_ids=documents, return_hidden_states=True, return_router_logits=True)
    alone = model(ids[:1, :9], return_hidden_states=True, return_router_logits=True)
    for inside in ("hidden_states_BSD", "router_logits_BSE"):
        packed, single = getattr(out, inside)[1], getattr(alone, inside)[1]
        assert relative(packed[:1, :9], single) < 1e-10
        assert not packed[0, 9:].any()


def test_the_statistics_are_those_of_the_router_logits() -> None:
    config = SHAPES["no clipping, weights by their 2-norm"]
    model, (ids, _) = make_model(config, torch.float64), tokens()
    out = model(ids, return_router_logits=True)
    logits_LTE = torch.stack(out.router_logits_BSE).flatten(1, 2)
    chosen_LTE = torch.zeros_like(logits_LTE).scatter_(2, logits_LTE.topk(4).indices, 1.0)
    assert torch.equal(out.counts_LE, chosen_LTE.sum(1).long())
    torch.testing.assert_close(out.prob_sums_LE, logits_LTE.softmax(-1).sum(1))
    torch.testing.assert_close(out.z_sums_L, logits_LTE.exp().sum(-1).log().pow(2).sum(1))


def indices(given: tuple[Tensor, ...]) -> Tensor:
    """The selected experts, found among the inputs of transformers' experts: versions 4 and 5 differ in their order."""
    return next(tensor for tensor in given if not tensor.is_floating_point())


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_equals_transformers_where_the_routing_agrees(device: str) -> None:
    """Rounding decides between nearly equal experts: about 3% of tokens are routed differently, and later tokens attend
    to them."""
    model = make_model(SHAPES["no clipping, weights by their 2-norm"], torch.bfloat16, device)
    twin = transformers_twin(model)
    ids = torch.randint(0, VOCAB, (128, 8), generator=torch.Generator().manual_seed(1)).to(device)
    chosen: dict[nn.Module, list[Tensor]] = {twin: [], model: []}
    for side, experts in chosen.items():
        for block in side.transformer.blocks:
            if side is model:
                block.ffn.router.register_forward_hook(lambda m, x, y, e=experts: e.append(y[1].sort().values))
            else:
                block.ffn.experts.register_forward_pre_hook(lambda m, x, e=experts: e.append(indices(x).sort().values))
    logits, expected = model(ids, return_logits=True).logits_BSV, twin(ids).logits
    flipped_BS = sum((mine != theirs).any(-1) for mine, theirs in zip(*chosen.values(), strict=True)).view_as(ids) > 0
    clean_BS = flipped_BS.cumsum(1) == 0
    assert flipped_BS.float().mean() < 0.06
    assert clean_BS.float().mean() > 0.8
    assert relative(logits[clean_BS], expected[clean_BS]) < 0.03
    for side in (logits, expected):
        # The loss of unaffected tokens has no contribution from differently routed ones.
        nn.functional.cross_entropy(side[clean_BS].float(), ids[clean_BS]).backward()
    twin_params = dict(twin.named_parameters())
    for name, param in model.named_parameters():
        assert relative(param.grad, twin_params[name].grad) < 0.06, name

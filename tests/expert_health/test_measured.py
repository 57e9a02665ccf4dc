"""Expert metrics are those of the whole step, on every mesh and for any number of microbatches."""

import math
from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor, nn

from tests.helpers.expert_parallel import EP2, HYBRID, HYBRID_EP2
from tests.helpers.logged import Logged
from tests.helpers.ranks import run_ranks
from tests.helpers.steps import Cut, build_cut, config_of, fit_made_rows
from train.config.schema import FSDPConfig
from train.config.supervision import ExpertsConfig
from train.models.moe import Router, Routing
from train.models.recompute import named_parameters

FSDP = FSDPConfig()
LORA = Cut(fsdp=FSDP, lora="A per expert", optimizer="adamw")
CUTS = {
    "1 rank, 4 microbatches": (1, Cut(microbatches=4, optimizer="adamw")),
    "2 ranks, DDP, 2 microbatches": (2, Cut(microbatches=2, optimizer="adamw")),
    "2 ranks, FSDP2, selective": (2, Cut(fsdp=FSDP, checkpointing="selective", optimizer="adamw")),
    "EP 2, 4 microbatches, block": (2, Cut(fsdp=EP2, microbatches=4, checkpointing="block", optimizer="adamw")),
    "EP 2, LoRA": (2, replace(LORA, fsdp=EP2)),
    "2x2 ranks, HSDP": (4, Cut(fsdp=HYBRID, optimizer="adamw")),
    "2 replicas of EP 2": (4, Cut(fsdp=HYBRID_EP2, microbatches=2, optimizer="adamw")),
}
TOKENS = 6
"""Tokens of the probe: at most those of the first row, which rank 0 has for any number of ranks."""
Metrics = dict[int, dict[str, float]]


class Obvious(Callback):
    """The same metrics computed simply from all router logits and gradients of a step, for one rank without
    sharding."""

    def __init__(self, model: nn.Module, top_k: int) -> None:
        self.model, self.top_k = model, top_k
        self.metrics: Metrics = defaultdict(dict)
        self.logits: dict[int, list[Tensor]] = defaultdict(list)
        routers = [module for module in model.modules() if isinstance(module, Router)]
        for layer, router in enumerate(routers):
            router.register_forward_hook(partial(self.note, layer))

    def note(self, layer: int, router: nn.Module, args: Any, routing: Routing) -> None:
        if router.training:
            self.logits[layer].append(routing.logits_TE.detach())

    def after_train_batch(self, state: State, logger: Logger) -> None:
        found = self.metrics[state.timestamp.batch.value]
        params = named_parameters(self.model)
        for layer, logits in self.logits.items():
            logits_TE, at = torch.cat(logits), f"experts/layer_{layer}"
            loads_E = [0] * logits_TE.shape[1]
            for logits_E in logits_TE:
                for expert in logits_E.topk(self.top_k).indices.tolist():
                    loads_E[expert] += 1
            shares = torch.tensor(loads_E).double() / sum(loads_E)
            found |= {f"{at}/load/expert_{expert}": share for expert, share in enumerate(shares.tolist())}
            found[f"{at}/load_imbalance"] = max(loads_E) * len(loads_E) / sum(loads_E)
            found[f"{at}/dead"] = loads_E.count(0)
            entropy = -sum(share * math.log(share) for share in shares.tolist() if share)
            found[f"{at}/effective_experts"] = math.exp(entropy) / len(loads_E)
            found[f"{at}/router_logit_rms"] = logits_TE.square().mean().sqrt().item()
            found[f"{at}/router_z"] = logits_TE.exp().sum(1).log().square().mean().item()
            for part in ("router", "experts"):
                grads = [param.grad for name, param in params if f"blocks.{layer}.ffn.{part}." in name]
                flat = [grad.flatten() for grad in grads if grad is not None]
                found[f"{at}/{part}_grad_norm"] = torch.cat(flat).norm().item()
        self.logits.clear()


def measured(cuts: list[Cut], obvious: bool = False) -> list[tuple[Metrics, Metrics]]:
    """The logged and the simply computed metrics of each split. For run_ranks."""
    dist.initialize_dist("cpu", timeout=60)
    results = []
    for cut in cuts:
        config = replace(config_of(cut), experts=ExpertsConfig(interval="2ba", probe_tokens=TOKENS))
        model, logged = build_cut(config, cut, torch.float64), Logged("experts/layer")
        expected: list[Any] = [Obvious(model, config.model.ffn_config.moe_top_k)] if obvious else []
        fit_made_rows(config, model, logged, *expected)
        results.append((logged.metrics, expected[0].metrics if expected else {}))
    return results


@pytest.fixture(scope="module")
def one_rank() -> dict[str, Any]:
    own = [cut for size, cut in CUTS.values() if size == 1]
    cuts = [Cut(optimizer="adamw"), LORA, *own]
    plain, lora, *others = run_ranks(measured, 1, cuts, True)[0]
    return {"plain": plain, "lora": lora, "others": others}


def compare(found: Metrics, expected: Metrics) -> None:
    assert found.keys() == expected.keys()
    for step, metrics in expected.items():
        assert found[step] == pytest.approx(metrics, rel=1e-9), step


@pytest.mark.ranks
def test_the_metrics_are_those_of_a_loop_over_the_logits(one_rank: dict[str, Any]) -> None:
    logged, obvious = one_rank["plain"]
    assert list(logged) == [0, 1, 3, 4]  # the first step, each second one, the last
    names = [f"experts/layer_{layer}/unchanged_choices" for layer in (0, 1)]
    unchanged = {step: [metrics[name] for name in names if name in metrics] for step, metrics in logged.items()}
    assert unchanged[0] == []
    assert any(0 < share < 1 for shares in unchanged.values() for share in shares)
    for step, metrics in logged.items():
        rest = {name: value for name, value in metrics.items() if "unchanged" not in name}
        assert rest == pytest.approx(obvious[step], rel=1e-9)


@pytest.mark.ranks
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_split_measures_the_same_as_one_rank(size: int, one_rank: dict[str, Any]) -> None:
    named = {name: cut for name, (n, cut) in CUTS.items() if n == size}
    results = one_rank["others"] if size == 1 else run_ranks(measured, size, list(named.values()))[0]
    for (name, cut), (found, _) in zip(named.items(), results, strict=True):
        print(name)
        compare(found, one_rank["plain" if cut.lora is None else "lora"][0])

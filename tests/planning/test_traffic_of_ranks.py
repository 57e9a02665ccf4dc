"""The planned traffic equals the bytes that ranks send."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.helpers.small_config import load
from train.planning.traffic import traffic
from train.simulation.operations import TrackedOperations
from train.simulation.storages import Storages

CASES = {
    "whole": (),
    "experts": ("fsdp_config={expert_parallel_degree: 2, activation_checkpointing: block}",),
    "adapters": ("lora={r: 2, alpha: 8, target_modules: [attn, experts]}", "fsdp_config.expert_parallel_degree=2"),
}


def sent_by(folder: Path) -> dict[str, tuple[dict[str, int], dict[str, float]]]:
    """The bytes that this rank sent in a step of each case, and the planned bytes."""
    import torch.distributed as dist
    from composer.utils import dist as composer_dist
    from composer.utils import get_device

    from train.distributed.build_model import build_model

    composer_dist.initialize_dist(get_device("cpu"), timeout=60)
    found = {}
    for name, overrides in CASES.items():
        (own := folder / f"{name}{dist.get_rank()}").mkdir()
        config = load(own, *overrides, "global_train_batch_size=4")
        device = torch.device("cpu")
        model = build_model(config.model, config.fsdp_config, precision="fp32", device=device, seed=1, lora=config.lora)
        with TrackedOperations(Storages()) as operations:
            for _ in range(2):
                ids = torch.arange(config.max_seq_len).view(1, -1)
                losses = model(ids, ids).losses_BS
                losses.sum().backward()
        planned: Counter[str] = Counter()
        for each in traffic(config, 2, gpu=False):
            planned[each.kind] += each.n_bytes  # pyright: ignore[reportArgumentType]
        sent: Counter[str] = Counter()
        for each, n_bytes in operations.traffic.items():
            sent[each.kind] += n_bytes
        found[name] = dict(sent), dict(planned)
    return found


@pytest.mark.ranks
def test_planned_traffic_is_what_ranks_send(tmp_path: Path) -> None:
    first, second = run_ranks(sent_by, 2, tmp_path)
    for name in CASES:
        # The routing makes one rank send more than the other.
        (sent, planned), (its, _) = first[name], second[name]
        assert {kind: (n_bytes + its[kind]) / 2 for kind, n_bytes in sent.items()} == planned

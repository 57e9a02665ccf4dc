"""The events that ExpertHealth reports, and its state across a resume."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from composer.loggers import Logger

from data.base.durations import Clock
from tests.helpers.models import make_config
from train.checkpoint.save_folder import RECORD
from train.config.supervision import ExpertsConfig
from train.expert_health.health import ExpertHealth
from train.expert_health.routing import RoutingSums
from train.models.config import FFNConfig
from train.models.dbrx import DbrxForCausalLM
from train.supervision.events import Events
from train.supervision.record_file import Record

CLOCK = Clock(tokens_per_batch=8, rows_per_batch=1, rows_per_epoch=8)


def model(n_layers: int, n_experts: int) -> DbrxForCausalLM:
    ffn = FFNConfig(ffn_hidden_size=24, moe_num_experts=n_experts, moe_top_k=1)
    with torch.device("meta"):
        return DbrxForCausalLM(make_config(n_layers=n_layers, ffn_config=ffn))


class Names:
    """A stand-in for Logger that records the names of logged metrics."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.names += metrics


def reported(folder: Path, counts_LE: Any, *, top_k: int, steps: int = 4, **config: Any) -> list[dict[str, Any]]:
    """The events of this number of steps with these loads."""
    health = ExpertHealth(
        ExpertsConfig(**config),
        CLOCK,
        model(len(counts_LE), len(counts_LE[0])),
        Events(Record({"save_folder": folder})),
    )
    zeros = np.zeros(len(counts_LE))
    sums = RoutingSums(counts_LE=np.array(counts_LE, float), z_sums_L=zeros, logit_squares_L=zeros, top_k=top_k)
    for batch in range(steps):
        health.report(batch, cast(Logger, Names()), sums)
    record = folder / RECORD
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def test_many_experts_that_die_together_are_one_event_of_bounded_size(tmp_path: Path) -> None:
    loads = [[64, *[0] * 63]] * 40
    (event,) = reported(tmp_path, loads, top_k=1, dead_steps=3, max_share=1.0)
    assert event["event"] == "expert_dead"
    assert event["experts"] == 40 * 63
    assert len(event["places"]) == 64
    assert len(event["message"]) < 300


def test_no_expert_is_reported_if_every_token_selects_all_experts(tmp_path: Path) -> None:
    assert reported(tmp_path, [[100] * 4], top_k=4, max_share_steps=1) == []


def test_max_share_counts_tokens_and_not_assignments(tmp_path: Path) -> None:
    (event,) = reported(tmp_path, [[96, 50, 50, 4], [94, 50, 50, 6]], top_k=2, max_share_steps=4)
    assert event["event"] == "expert_collapse"
    assert event["places"] == [[0, 0]]


def test_state_of_an_older_checkpoint_or_another_probe_is_ignored() -> None:
    health = ExpertHealth(ExpertsConfig(), CLOCK, model(2, 4), Events(None))
    fresh = json.dumps(health.state_dict())
    health.load_state_dict({"lengths": {"0.1": 7}})
    health.load_state_dict({"probe": {"n_tokens": 7, "rows": [[[1, 2], [0, 0]]]}})
    assert json.dumps(health.state_dict()) == fresh

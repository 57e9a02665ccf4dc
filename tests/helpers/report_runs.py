"""Log folders with synthetic metrics.jsonl and record.jsonl, for tests of reports."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START = 1_790_000_000.0
TOKENS_PER_BATCH = 8 * 128
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a simulated run."""

    name: str = "toy"
    steps: int = 400
    max_steps: int = 400
    streams: tuple[str, ...] = ("web", "code")
    layers: int = 2
    experts: int = 4
    measured_every: int = 20
    evaluated_every: int = 50
    saved_every: int = 100
    seconds: float = 1.5
    """Seconds per step."""
    lr: float = 3e-4
    seed: int = 0
    outcome: str | None = "finished"
    resumed: bool = True
    """Whether the run is killed after 3/4 of its steps and resumes from the previous checkpoint with another learning
    rate."""
    text: str = "the router sends each token"
    mfu: bool = False


def write_run(folder: Path, shape: Shape = Shape()) -> Path:
    """Write both files and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics, record = [], []
    for kind, line in _lines(shape):
        (metrics if kind == "metrics" else record).append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
    (folder / "record.jsonl").write_text("\n".join(record) + "\n")
    return folder


def _lines(shape: Shape) -> Iterator[tuple[str, dict[str, Any]]]:
    clock = START
    killed = shape.steps * 3 // 4 + 10 if shape.resumed else None
    yield "record", _start(shape, 0, clock, shape.lr, None)
    yield from _attempt(shape, 0, killed or shape.steps, clock, shape.lr)
    if killed is not None:
        clock += (killed * shape.seconds) + 3600
        first = killed // shape.saved_every * shape.saved_every
        yield "record", _start(shape, first, clock, shape.lr / 3, f"checkpoints/ep0-ba{first}")
        yield from _attempt(shape, first, shape.steps, clock, shape.lr / 3)
    if shape.outcome is not None:
        end = {"batch": shape.steps, "time": clock + shape.steps * shape.seconds, "event": "end"}
        yield "record", {**end, "message": f"the run has {shape.outcome}", "outcome": shape.outcome}


def _attempt(shape: Shape, first: int, end: int, clock: float, lr: float) -> Iterator[tuple[str, dict[str, Any]]]:
    draw = random.Random(shape.seed + first)
    border, spike, skip = shape.steps // 2, shape.steps * 3 // 5, shape.steps // 3
    for batch in range(first + 1, end + 1):
        now = clock + (batch - first) * shape.seconds
        place = {"batch": batch, "time": now}
        if batch in (1, border):
            name = "broad" if batch == 1 else "anneal"
            yield "record", {"batch": batch - 1, "time": now, "event": "stage", "name": name}
        if batch == skip:
            event = {
                "event": "nonfinite",
                "message": f"the loss or gradient norm of batch {batch} is not finite: the loss is nan on rank 0",
            }
            yield "record", {**place, **event}
        if batch == spike:
            yield (
                "record",
                {**place, "event": "spike", "message": f"batch {batch}: the loss is 9.1, a spike", "loss": 9.1},
            )
        if batch == spike + 8:
            text = "experts without tokens for 8 steps: layer 1: 2"
            yield "record", {**place, "event": "expert_dead", "message": text}
        metrics = _step(shape, batch, draw, lr, border, spike)
        if batch == skip:
            metrics["loss/train/total"] = "nan"
        yield "metrics", {**place, "tok": batch * TOKENS_PER_BATCH, "metrics": metrics}
        if batch % shape.evaluated_every == 0 or batch == end:
            loss = 2 + 4 * math.exp(-4 * batch / shape.steps)
            values = {
                "LanguageCrossEntropy": loss,
                "LanguagePerplexity": math.exp(loss),
                "LanguageTokenAccuracy": 1 / loss,
            }
            logged = {f"metrics/eval/{name}": value for name, value in values.items()}
            yield "metrics", {**place, "tok": batch * TOKENS_PER_BATCH, "metrics": logged}
            yield "record", {**place, "eval": values}
            samples = [{"prompt": "Experts are", "text": f"Experts are {shape.text} ({batch})"}]
            yield "record", {**place, "samples": samples}
        if batch % shape.saved_every == 0 or batch == shape.steps:
            tokens = dict.fromkeys(shape.streams, batch * 400)
            yield "record", {**place, "rows": tokens, "tokens": tokens, "versions": {"torch": "2.15.0"}}
            path = f"checkpoints/ep0-ba{batch}"
            yield "record", {**place, "event": "saved", "path": path, "seconds": 1.25, "bytes": 123_456_789}


def _step(shape: Shape, batch: int, draw: random.Random, lr: float, border: int, spike: int) -> dict[str, Any]:
    done = batch / shape.steps
    loss = 1.9 + 4 * math.exp(-4 * done) + draw.gauss(0, 0.08) + (6 if spike <= batch < spike + 3 else 0)
    warm = min(1.0, batch / max(1, shape.steps // 20))
    speed = TOKENS_PER_BATCH / shape.seconds * (1 + draw.gauss(0, 0.02))
    metrics: dict[str, Any] = {
        "loss/train/total": loss,
        "loss/train/lm": loss - 0.011,
        "loss/train/load_balancing": 0.01 + 0.002 * draw.random(),
        "loss/train/router_z": 0.001 + 0.0001 * draw.random(),
        "lr": lr * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * done))),
        "l2_norm/grad/global": 1 + draw.expovariate(3) + (8 if spike <= batch < spike + 3 else 0),
        "throughput/tokens_per_sec": speed,
        "throughput/real_tokens_per_sec": speed * 0.93,
        "throughput/trained_tokens_per_sec": speed * 0.61,
        "throughput/device/tokens_per_sec": speed / 8,
        "throughput/device/flops_per_sec": speed * 1.3e9,
        "memory/peak_gib": 61.3 + 2 * done,
        "time/remaining_seconds": (shape.max_steps - batch) * shape.seconds,
        "experts/load_imbalance": 1.3 + 0.2 * draw.random(),
        "experts/dead": float(batch >= spike),
        "tokens/total": batch * TOKENS_PER_BATCH,
        "tokens/real": int(batch * TOKENS_PER_BATCH * 0.93),
        "tokens/trained": int(batch * TOKENS_PER_BATCH * 0.61),
        "seconds/startup": 40.0,
        "seconds/data": 0.05 * batch,
        "seconds/train": 1.2 * batch,
        "seconds/save": 0.02 * batch,
        "seconds/eval": 0.12 * batch,
        "seconds/generate": 0.01 * batch,
        "seconds/other": 0.03 * batch,
    }
    if shape.mfu:
        metrics["throughput/device/mfu"] = 0.41 + draw.gauss(0, 0.004)
    metrics |= _of_streams(shape, batch, draw, border, loss)
    if batch % shape.measured_every == 0:
        metrics |= _of_experts(shape, batch, draw, dead=batch >= spike)
    return metrics


def _of_streams(shape: Shape, batch: int, draw: random.Random, border: int, loss: float) -> dict[str, float]:
    shares = [1.0 / 2**number for number in range(len(shape.streams))]
    shares = shares if batch < border else shares[::-1]
    metrics: dict[str, float] = {}
    for number, (name, share) in enumerate(zip(shape.streams, shares, strict=True)):
        planned = share / sum(shares)
        metrics[f"streams/{name}/loss"] = loss + 0.4 * number - 0.2
        metrics[f"streams/{name}/tokens"] = 400 * batch
        metrics[f"streams/{name}/passes"] = batch / 900
        metrics[f"streams/{name}/share"] = round(planned * 8) / 8
        metrics[f"streams/{name}/planned_share"] = planned
        metrics[f"streams/{name}/token_share"] = planned + draw.gauss(0, 0.03)
        metrics[f"streams/{name}/planned_token_share"] = planned
    return metrics


def _of_experts(shape: Shape, batch: int, draw: random.Random, *, dead: bool) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for layer in range(shape.layers):
        loads = [
            math.exp(draw.gauss(0, 0.15 + 0.4 * math.sin(layer + batch / shape.steps) ** 2))
            for _ in range(shape.experts)
        ]
        if dead and layer == shape.layers - 1:
            loads[shape.experts // 2] = 0.0
        total, key = sum(loads), f"experts/layer_{layer}"
        shares = [load / total for load in loads]
        metrics |= {f"{key}/load/expert_{expert}": share for expert, share in enumerate(shares)}
        entropy = -sum(share * math.log(share) for share in shares if share)
        metrics |= {
            f"{key}/load_imbalance": max(shares) * shape.experts,
            f"{key}/effective_experts": math.exp(entropy) / shape.experts,
            f"{key}/dead": float(shares.count(0.0)),
            f"{key}/router_logit_rms": 1.1 + 0.1 * layer,
            f"{key}/router_z": 2.0 + 0.1 * layer,
            f"{key}/unchanged_choices": min(0.99, 0.5 + batch / shape.steps / 2),
            f"{key}/router_grad_norm": 0.05 * draw.random(),
            f"{key}/experts_grad_norm": 0.5 * draw.random(),
        }
    return metrics


def _start(shape: Shape, batch: int, now: float, lr: float, resumed_from: str | None) -> dict[str, Any]:
    config = {
        "run_name": shape.name,
        "max_seq_len": 128,
        "model": {
            "d_model": 64,
            "n_layers": shape.layers,
            "ffn_config": {"moe_num_experts": shape.experts, "moe_top_k": 2},
        },
        "optimizer": {"name": "adamw", "lr": lr, "betas": [0.9, 0.95]},
        "max_duration": f"{shape.max_steps}ba",
        "save_folder": "runs/{run_name}/checkpoints",
    }
    manifest = {
        "rows": 4_000,
        "tokens": 512_000,
        "trained_tokens": 312_000,
        "documents": 9_000,
        "fingerprint": "0123456789abcdef",
        "source": ["data/web-0.jsonl", "data/web-1.jsonl"],
        "packing": True,
        "rows_in": 9_021,
        "examples_truncated": 12,
        "tokens_truncated": 800,
        "tokens_dropped": 1_200,
        "padding": 2_048,
        "dropped": {"longer than max_seq_len": 7, "bad rows": 2},
    }
    return {
        "batch": batch,
        "time": now,
        "event": "start",
        "message": "the run starts" if resumed_from is None else f"the run resumes from {resumed_from}",
        "run_id": "2c0ffee0",
        "run_name": shape.name,
        "resumed_from": resumed_from,
        "world_size": 8,
        "nodes": 1,
        "device": "NVIDIA H200",
        "precision": "amp_bf16",
        "command": "composer -n 8 train.py yamls/pretrain/dbrx_tiny.yaml",
        "max_batches": shape.max_steps,
        "tokens_per_batch": TOKENS_PER_BATCH,
        "parameters": {"total": 131_596_523_520, "active": 36_472_000_000, "trained": 131_596_523_520},
        "config": config,
        "defaults_differ": {"max_seq_len": 128, "model.d_model": 64, "optimizer.lr": lr},
        "versions": {"python": "3.11.7", "torch": "2.15.0", "mosaicml": "0.32.1"},
        "git": {"commit": "fcc31de0123456789", "branch": "main", "dirty": True},
        "environment": {
            "python": "3.11.7",
            "platform": "Linux-6.1-x86_64",
            "hostname": "node0",
            "cpus": 96,
            "memory_bytes": 2_000_000_000_000,
        },
        "data": {"train_loader": dict.fromkeys(shape.streams, manifest), "eval_loader": {"": manifest}},
        "stages": [
            {"name": "broad", "first": 0, "end": shape.steps // 2},
            {"name": "anneal", "first": shape.steps // 2, "end": shape.max_steps},
        ],
        "planned_memory_bytes": 68_000_000_000,
    }

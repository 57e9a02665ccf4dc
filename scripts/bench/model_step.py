"""Times a training step of one model on one device without Composer: forward, backward and torch's fused AdamW.
Compares three kinds of variants: Dropless with each available moe_impl, the DBRX model of transformers, and a baseline
that computes only the GEMMs of the step.

The variants run in turn in every round, on the same rows of packed documents. Ratios are computed per round. All
variants share one set of weights in --dtype and one optimizer with learning rate 0. Therefore, a layer of DBRX's width
fits on a GPU with 80 GB (8 bytes per parameter), and the loss is the same in every step. The lower bound for the
experts' time is the time of one GEMM over all assignments.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from data.mds.row import IGNORED
from scripts.bench import common
from scripts.bench.step_models import Batch, make_batch, transformers_batch
from scripts.bench.step_operations import gemm_floors
from train.hf.config_json import transformers_config
from train.models.config import ModelConfig
from train.models.dbrx import DbrxForCausalLM

Loss = Callable[[], Tensor]
TRANSFORMERS = "transformers"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    sizes = {"n_layers": 1, "d_model": 6144, "n_heads": 48, "kv_n_heads": 8, "ffn_hidden_size": 10752}
    sizes |= {"moe_num_experts": 16, "moe_top_k": 4, "vocab_size": 100352, "rows": 2, "max_seq_len": 4096}
    parser = common.make_parser(__doc__, **sizes, documents=3, rounds=7, warmup=3, threads=1)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"], help="default: cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="default: bfloat16")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: --device is cuda, but torch finds no GPU: use --device cpu", file=sys.stderr)
        return 2
    common.prepare_process(args.threads)
    variants, params, notes = build_variants(args)
    steps = Steps(args, variants, params)
    losses = {name: steps.run(name)[1] for name in variants}
    peaks = {name: steps.peak_bytes(name) for name in variants}
    times = measure(args, steps)
    rows = summarise(args, times, losses, peaks)
    common.show_table([cells(name, row) for name, row in rows.items()])
    for note in notes:
        print(note)
    common.write_json(args.json, common.description(args) | {"sides": rows, "notes": notes})
    return 0


def build_variants(args: argparse.Namespace) -> tuple[dict[str, Loss], list[nn.Parameter], list[str]]:
    """Return the loss function of each variant, the shared weights, and notes on variants that are not available."""
    config, batch, dtype = common.model_config(args), make_batch(args), getattr(torch, args.dtype)
    state = draw_weights(config, args.device, dtype)
    variants: dict[str, Loss] = {}
    notes: list[str] = []
    for moe_impl in common.available_moe_impls(args.device, dtype, notes):
        variants[f"dropless, {moe_impl}"] = dropless_loss(config, moe_impl, state, to(batch, args.device))
    try:
        variants[TRANSFORMERS] = transformers_loss(config, state, to(transformers_batch(batch), args.device))
    except ImportError as error:
        notes.append(f"not measured: transformers' model ({error})")
    return variants, list(state.values()), notes


def draw_weights(config: ModelConfig, device: str, dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """Draw the weights on the device, which is fast even for a layer of DBRX's width. train.models.init is not used,
    because it would draw the weights on the CPU."""
    with torch.device("meta"):
        model = DbrxForCausalLM(config).to(dtype)
    model.to_empty(device=device)
    torch.manual_seed(0)
    for param in model.parameters():
        nn.init.ones_(param) if param.ndim == 1 else nn.init.normal_(param, std=config.initializer_range)
    return dict(model.named_parameters())


def to(batch: Batch, device: str) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def dropless_loss(config: ModelConfig, moe_impl: Any, state: dict[str, nn.Parameter], batch: Batch) -> Loss:
    with torch.device("meta"):
        model = DbrxForCausalLM(replace(config, ffn_config=replace(config.ffn_config, moe_impl=moe_impl)))
    model.load_state_dict(state, assign=True)
    trained = int((batch["labels"] != IGNORED).sum())
    return lambda: model(batch["input_ids"], batch["labels"], batch["document_ids"]).losses_BS.sum() / trained


def transformers_loss(config: ModelConfig, state: dict[str, nn.Parameter], batch: Batch) -> Loss:
    """The loss function of transformers' own model, with SDPA."""
    import transformers

    param = next(iter(state.values()))
    # The model is not built on the meta device, because its buffers must be computed, and must stay in fp32.
    with param.device:
        model = transformers.DbrxForCausalLM(transformers_config(config, attn_implementation="sdpa"))
    model.load_state_dict(state, assign=True)
    batch = batch | {"attention_mask": batch["attention_mask"].to(param.dtype)}
    return lambda: model(**batch, use_cache=False).loss


class Steps:
    """Training steps of all variants with one optimizer."""

    def __init__(self, args: argparse.Namespace, variants: dict[str, Loss], params: list[nn.Parameter]) -> None:
        self.device, self.variants = args.device, variants
        self.optimizer = torch.optim.AdamW(params, lr=0.0, weight_decay=0.1, fused=True)

    def run(self, name: str) -> tuple[float, float]:
        """Run a step and return its seconds and loss."""
        start = common.now(self.device)
        loss = self.variants[name]()
        loss.backward()
        self.optimizer.step()
        seconds = common.now(self.device) - start
        self.optimizer.zero_grad()
        return seconds, float(loss.detach())

    def peak_bytes(self, name: str) -> int | None:
        """The peak memory of a step in bytes, including weights and moments. None on a CPU."""
        if self.device == "cpu":
            return None
        torch.cuda.reset_peak_memory_stats()
        self.run(name)
        return torch.cuda.max_memory_allocated()


def measure(args: argparse.Namespace, steps: Steps) -> dict[str, list[float]]:
    """Return the seconds of each variant and of each lower bound in each measured round."""
    on_gpu = args.device == "cuda"
    as_trained = {"device": "gpu" if on_gpu else "cpu", "precision": "amp_bf16" if args.dtype == "bfloat16" else "fp32"}
    sizes = argparse.Namespace(**vars(args) | as_trained)
    floors = gemm_floors(common.model_config(args), make_batch(args), sizes, experts=("dense",))
    times: dict[str, list[float]] = {name: [] for name in (*steps.variants, *floors)}
    for number, order in enumerate(common.rounds(times, args.warmup + args.rounds)):
        for name in order:
            seconds = floors[name]() if name in floors else steps.run(name)[0]
            if number >= args.warmup:
                times[name].append(seconds)
    return times


def summarise(
    args: argparse.Namespace,
    times: dict[str, list[float]],
    losses: dict[str, float],
    peaks: dict[str, int | None],
) -> dict[str, dict[str, Any]]:
    """Return, for each variant, the median of the seconds over the rounds, and the medians of the ratios."""
    best = common.floors_of(times, {"best": "GEMMs"})["best"]
    rows: dict[str, dict[str, Any]] = {}
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        row: dict[str, Any] = {"seconds": seconds, "median_s": middle}
        row["tokens_per_s"] = args.rows * args.max_seq_len / middle
        row["share of the best GEMMs"] = common.ratio(best, seconds)
        if TRANSFORMERS in times:
            row["speed over transformers"] = common.ratio(times[TRANSFORMERS], seconds)
        rows[name] = row | {"loss": losses.get(name), "peak_bytes": peaks.get(name)}
    return rows


def cells(name: str, row: dict[str, Any]) -> dict[str, str]:
    def shown(key: str, form: str, scale: float = 1.0) -> str:
        return "" if row.get(key) is None else form.format(row[key] * scale)

    return {
        "variant": name,
        "ms": common.median(row["seconds"], digits=1, scale=1e3),
        "min-max": common.spread(row["seconds"], digits=1, scale=1e3),
        "tokens/s": shown("tokens_per_s", "{:,.0f}"),
        "x best GEMMs": shown("share of the best GEMMs", "{:.2f}"),
        "x transformers": shown("speed over transformers", "{:.2f}"),
        "peak GB": shown("peak_bytes", "{:.2f}", 1e-9),
        "loss": shown("loss", "{:.4f}"),
    }


if __name__ == "__main__":
    sys.exit(main())

"""A whole training step under Composer with torch's fused AdamW: Dropless, transformers' DBRX with the same weights,
and a dense model of equal active FLOPs, beside the time of the step's GEMMs alone.

The sides take turns in every round, on the same rows of packed documents, each in a process of its own as when it
trains: in one, each leaves holes in the others' memory. Ratios are taken within a round. On a CPU one thread computes
and its own CPU time is measured, which other programs hardly change. The floor is the forward and both backward GEMMs
of every matrix, the experts' once as one GEMM over all assignments and once as one GEMM an expert: of torch.mm alone,
or of the faster of torch.mm and oneDNN.
"""

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# As train.py does; it serves all sides.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
import transformers
from composer import Trainer
from composer.core import Callback, DataSpec, State
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import Tensor

from train.callbacks.global_batch import GlobalBatch
from train.composer_model import DbrxForComposer
from train.gemms import GEMM, gemm_kinds
from train.hardware.allocator import keep_freed_memory
from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.models.dbrx import IGNORED, DbrxForCausalLM
from train.models.init import initialise

Batch = dict[str, Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    # As train/main.py and train/run/trainer.py do, for all sides too.
    gc.freeze()
    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        stack.callback(gc.unfreeze)
        sides = {name: stack.enter_context(Side(build)) for name, build in builders(args).items()}
        # The first step of each also shows that both compute the same. Until the fifth, memory settles: pages are
        # still asked for that later steps use again.
        firsts = {name: side.run("step") for name, side in sides.items()}
        for name, side in sides.items():
            for _ in range(3 if name != FLOORS else 1):
                side.run("step")
        if {"dropless", "transformers"} <= firsts.keys():
            ours, theirs = (firsts[name]["loss"] for name in ("dropless", "transformers"))
            assert abs(ours - theirs) < 1e-3, f"the sides disagree: {ours}, {theirs}"
        times: dict[str, list[float]] = {name: [] for name in (*list(sides)[:-1], *firsts[FLOORS])}
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
            for name, side in sides.items():
                found = side.run("step")
                for key, seconds in found.items() if name == FLOORS else [(name, found["seconds"])]:
                    times[key].append(seconds)
        profiled = sides["dropless"].run("profile") if "dropless" in sides else {}
    report(times, profiled, args)
    return 0


FLOORS = "floors"


def builders(args: argparse.Namespace) -> dict[str, Callable[[], Callable[[], dict[str, float]]]]:
    """What makes each side; the floors come last."""
    config, batch = model_config(args), make_batch(args)

    def by_row(count: bool) -> Callable[[], dict[str, float]]:
        step = dropless(config, batch, args)
        return lambda: step(microbatch=1, count=count)

    steps: dict[str, Callable[[], Any]] = {
        "dropless": lambda: dropless(config, batch, args),
        "dropless, a row a microbatch": lambda: by_row(count=False),
        "dropless, and moe_lbl_scope: batch": lambda: by_row(count=True),
        "transformers": lambda: transformers_side(config, batch, args),
        "dense, equal active FLOPs": lambda: dropless(dense(config), batch, args),
    }

    def floors() -> Callable[[], dict[str, float]]:
        gemms = gemm_floors(config, batch, args)
        return lambda: {name: run() for name, run in gemms.items()}

    return {name: build for name, build in steps.items() if name.split(",")[0] in args.sides} | {FLOORS: floors}


class Side:
    """What `build` makes, in a process of its own that waits between its turns."""

    def __init__(self, build: Callable[[], Callable[[], Any]]) -> None:
        # Forked, because importing takes longer than most steps; nothing has touched a GPU yet.
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=self._serve, args=(build, other), daemon=True)

    def _serve(self, build: Callable[[], Callable[[], Any]], connection: Any) -> None:
        step = build()
        while True:
            connection.send(step() if connection.recv() == "step" else profile(step))

    def __enter__(self) -> "Side":
        self.process.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.kill()
        self.process.join()

    def run(self, what: Literal["step", "profile"]) -> Any:
        self.connection.send(what)
        while not self.connection.poll(1):
            if not self.process.is_alive():
                sys.exit("error: a side has ended early, its reason is above")
        return self.connection.recv()


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"n_layers": 8, "d_model": 512, "n_heads": 8, "kv_n_heads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"ffn_hidden_size": 896, "moe_num_experts": 16, "moe_top_k": 4, "vocab_size": 8192}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"rows": 4, "max_seq_len": 512, "documents": 3, "rounds": 7, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    every = ["dropless", "transformers", "dense"]
    parser.add_argument("--sides", nargs="+", default=every, choices=every)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "amp_bf16"])
    parser.add_argument("--json", type=Path, help="write all times to this file")
    return parser.parse_args(argv)


def model_config(args: argparse.Namespace) -> ModelConfig:
    return ModelConfig(
        d_model=args.d_model,
        n_heads=args.n_heads,
        n_layers=args.n_layers,
        max_seq_len=args.max_seq_len,
        vocab_size=args.vocab_size,
        attn_config=AttnConfig(kv_n_heads=args.kv_n_heads),
        ffn_config=FFNConfig(
            ffn_hidden_size=args.ffn_hidden_size, moe_num_experts=args.moe_num_experts, moe_top_k=args.moe_top_k
        ),
    )


def dense(config: ModelConfig) -> ModelConfig:
    """One expert as wide as all that a token is sent to."""
    ffn = config.ffn_config
    width = ffn.ffn_hidden_size * ffn.moe_top_k
    one = FFNConfig(ffn_hidden_size=width, moe_num_experts=1, moe_top_k=1, moe_loss_weight=0.0)
    fields = {name: getattr(config, name) for name in ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size")}
    return ModelConfig(**fields, attn_config=config.attn_config, ffn_config=one)


def make_batch(args: argparse.Namespace) -> Batch:
    """Rows of documents of unequal length; every token is trained on but each document's first."""
    draw = torch.Generator().manual_seed(0)
    shape = (args.rows, args.max_seq_len)
    ids = torch.randint(0, args.vocab_size, shape, generator=draw)
    bounds = torch.stack([torch.randperm(shape[1] - 1, generator=draw)[: args.documents - 1] + 1 for _ in ids])
    document_ids = (torch.arange(shape[1])[None, :, None] >= bounds[:, None, :]).sum(-1)
    goes_on = torch.zeros(shape, dtype=torch.bool)
    goes_on[:, :-1] = document_ids[:, 1:] == document_ids[:, :-1]
    return {"input_ids": ids, "labels": torch.where(goes_on, ids.roll(-1, 1), IGNORED), "document_ids": document_ids}


def now() -> float:
    """Seconds: of the device when there is one, else of this process."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Clock(Callback):
    """From the batch on the device to the end of the optimizer's step."""

    def batch_start(self, state: State, logger: Logger) -> None:
        self.start = now()

    def batch_end(self, state: State, logger: Logger) -> None:
        self.seconds = now() - self.start

    def after_loss(self, state: State, logger: Logger) -> None:
        loss: Any = state.loss
        self.loss = float(loss["lm"] if isinstance(loss, dict) else loss)


class Repeated:
    """The same batch again and again, as a loader."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield dict(self.batch)


def trainer_step(model: ComposerModel, batch: Batch, callbacks: list[Callback], args: argparse.Namespace) -> Any:
    clock = Clock()
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(Repeated(batch)),
        optimizers=torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True),
        callbacks=[clock, *callbacks],
        device=args.device,
        precision=args.precision,
        device_train_microbatch_size=args.rows,
        progress_bar=False,
        log_to_console=False,
    )

    def step(microbatch: int = args.rows, count: bool = False) -> dict[str, float]:
        trainer.state.device_train_microbatch_size = microbatch
        for callback in callbacks:
            if isinstance(callback, GlobalBatch):
                callback.count_experts, callback.cost_told = count, True
        trainer.fit(duration="1ba")
        return {"seconds": clock.seconds, "loss": clock.loss}

    return step


def initial_model(config: ModelConfig) -> DbrxForCausalLM:
    model = DbrxForCausalLM(config)
    initialise(model, config, seed=0)
    return model


def dropless(config: ModelConfig, batch: Batch, args: argparse.Namespace) -> Any:
    model = DbrxForComposer(config, initial_model(config))
    return trainer_step(model, batch, [GlobalBatch(config)], args)


class TransformersForComposer(ComposerModel):
    def __init__(self, model: transformers.DbrxForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Any:
        return self.model(**batch, use_cache=False)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return outputs.loss


def transformers_side(config: ModelConfig, batch: Batch, args: argparse.Namespace) -> Any:
    """transformers' own model and loss with SDPA; a mask of blocks keeps documents apart, positions restart."""
    attn, ffn = config.attn_config, config.ffn_config
    make: Any = transformers.DbrxConfig
    theirs = make(
        d_model=config.d_model,
        n_heads=config.n_heads,
        n_layers=config.n_layers,
        max_seq_len=config.max_seq_len,
        vocab_size=config.vocab_size,
        attn_config={"kv_n_heads": attn.kv_n_heads, "rope_theta": attn.rope_theta, "clip_qkv": attn.clip_qkv},
        ffn_config={
            "ffn_hidden_size": ffn.ffn_hidden_size,
            "moe_num_experts": ffn.moe_num_experts,
            "moe_top_k": ffn.moe_top_k,
            "moe_normalize_expert_weights": ffn.moe_normalize_expert_weights,
        },
        # transformers 5 reads it here.
        rope_parameters={"rope_type": "default", "rope_theta": attn.rope_theta},
        attn_implementation="sdpa",
    )
    model = transformers.DbrxForCausalLM(theirs)
    model.load_state_dict(initial_model(config).state_dict())
    ids, documents = batch["input_ids"], batch["document_ids"]
    index = torch.arange(ids.shape[1])
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    sees = (documents[:, :, None] == documents[:, None, :]) & (index[:, None] >= index[None, :])
    least = torch.finfo(torch.float32).min
    prepared = {
        "input_ids": ids,
        # transformers shifts labels itself.
        "labels": torch.where(starts, IGNORED, ids),
        "position_ids": index - torch.where(starts, index, 0).cummax(dim=1).values,
        "attention_mask": torch.where(sees, 0.0, least).unsqueeze(1),
    }
    return trainer_step(TransformersForComposer(model), prepared, [], args)


def gemm_floors(config: ModelConfig, batch: Batch, args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Each runs one layer's GEMMs and the head's, and returns the seconds of a step's."""
    device = "cuda" if args.device == "gpu" else "cpu"
    dtype = torch.bfloat16 if args.precision == "amp_bf16" else torch.float32
    T, D, ffn = batch["input_ids"].numel(), config.d_model, config.ffn_config
    N, A, E = int((batch["labels"] != IGNORED).sum()), T * ffn.moe_top_k, ffn.moe_num_experts
    qkv = D + 2 * config.attn_config.kv_n_heads * config.head_dim
    others = [(T, D, qkv), (T, D, D), (T, D, E)]
    experts = {"dense": [(A, D, ffn.ffn_hidden_size)] * 3, "per expert": [(A // E, D, ffn.ffn_hidden_size)] * 3 * E}
    floors = {}
    for kind, mm in gemm_kinds(torch.empty(0, device=device, dtype=dtype)).items():
        head = linear((N, D, config.vocab_size), device, dtype, mm)
        for name, shapes in experts.items():
            layer = [linear(shape, device, dtype, mm) for shape in others + shapes]
            floors[f"GEMMs, {kind}, {name}"] = lambda layer=layer, head=head: (
                config.n_layers * timed(layer) + timed([head])
            )
    return floors


def linear(shape: tuple[int, int, int], device: str, dtype: torch.dtype, mm: GEMM) -> Callable[[], None]:
    """The three GEMMs of one matrix: its product and both gradients."""
    n, k, m = shape
    x, w, y = (torch.randn(s, device=device, dtype=dtype) for s in ((n, k), (m, k), (n, m)))
    out_y, out_x, out_w = torch.empty_like(y), torch.empty_like(x), torch.empty_like(w)

    def run() -> None:
        mm(x, w.t(), out_y)
        mm(y, w, out_x)
        mm(y.t(), x, out_w)

    return run


def timed(gemms: list[Callable[[], None]]) -> float:
    start = now()
    for run in gemms:
        run()
    return now() - start


GROUPS = {
    "GEMMs": ("aten::mm", "aten::addmm"),
    "attention between its matrices": (
        "scaled_dot_product",
        "aten::bmm",
        "aten::baddbmm",
        "_softmax",
        "_Blocks",
    ),
    "functions that call all this": ("_LoopedGLU", "_ClipAndRotate"),
    "AdamW": ("_fused_adamw_",),
    "copies": ("copy_", "aten::cat"),
    "gathers, scatters, sorts": ("index", "gather", "scatter", "sort", "embedding", "topk"),
    "norms, exp, max, log": ("layer_norm", "logsumexp", "aten::exp", "aten::max", "aten::log"),
    "other elementwise": ("mul", "add", "silu", "clamp", "div", "sub", "neg", "sum", "fill", "zero", "pow"),
}


def profile(step: Callable[[], Any]) -> dict[str, float]:
    """Seconds by group of operations, by their own time, the profiler's included; of three steps the quickest."""
    tables = []
    for _ in range(3):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            step()
        seconds = dict.fromkeys([*GROUPS, "the rest"], 0.0)
        for event in profiler.key_averages():
            group = next((n for n, parts in GROUPS.items() if any(part in event.key for part in parts)), "the rest")
            if event.key.startswith("aten::add"):
                group = "GEMMs" if "addmm" in event.key else "other elementwise"
            seconds[group] += event.self_cpu_time_total / 1e6
        tables.append(seconds)
    return min(tables, key=lambda seconds: sum(seconds.values()))


def report(times: dict[str, list[float]], profiled: dict[str, float], args: argparse.Namespace) -> None:
    names = {"torch.mm": "GEMMs, torch.mm", "best GEMMs": "GEMMs"}
    floors = {
        floor: [min(row) for row in zip(*(t for name, t in times.items() if name.startswith(start)), strict=True)]
        for floor, start in names.items()
    }
    rows = {}
    for name, seconds in times.items():
        rows[name] = {"seconds": seconds, "median_s": statistics.median(seconds)}
        rows[name] |= {f"share of the floor, {floor}": ratio(best, seconds) for floor, best in floors.items()}
        if "transformers" in times:
            rows[name]["speed over transformers"] = ratio(times["transformers"], seconds)
    print(f"{'side':<28}{'s':>7}{'min-max':>14}{'of torch.mm':>13}{'of the best GEMMs':>19}{'x transformers':>16}")
    for name, row in rows.items():
        spread = f"{min(row['seconds']):.2f}-{max(row['seconds']):.2f}"
        mm, best = (f"{row[f'share of the floor, {floor}']:.2f}" for floor in floors)
        speed = f"{row['speed over transformers']:.2f}" if "transformers" in times else ""
        print(f"{name:<28}{row['median_s']:>7.2f}{spread:>14}{mm:>13}{best:>19}{speed:>16}")
    for name, seconds in profiled.items():
        print(f"  a step of dropless, {name:<28}{seconds:>7.2f} s {seconds / sum(profiled.values()):>6.1%}")
    if args.json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        result = {"settings": settings, "torch": torch.__version__, "sides": rows, "profile": profiled}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    sys.exit(main())

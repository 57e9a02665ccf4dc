"""What a resumed run prints of its changes is what it does."""

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger

from data.base.errors import ConfigError
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.config.load import read_config
from train.run.fit import fit
from train.run.inputs import open_inputs

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

COMMON = ["autoresume=true", "eval_loader=null", "save_interval=2ba"]
APPLIED = {
    "optimizer.lr": "1e-4",
    "optimizer.freeze": "['*.wte.weight']",
    "algorithms.gradient_clipping.clipping_threshold": "0.5",
    "model.resid_pdrop": "0.3",
    "model.ffn_config.moe_loss_weight": "0.5",
    "scheduler.name": "constant_with_warmup",
    "callbacks.speed_monitor": "{window_size: 3}",
    "progress_bar": "true",
    "device_train_microbatch_size": "4",
    "save_interval": "1ba",
    "train_loader.dataset.max_repeats": "2",
}
IGNORED = {
    "train_loader.name": "text",
    "model.initializer_range": "0.3",
    "model.scale_residual_init": "false",
    "optimizer.momentum": "0.5",
    "scheduler.t_decay": "0.3dur",
    "save_overwrite": "true",
    "load_path": "nowhere",
    "load_weights_only": "true",
    "tokenizer.kwargs.model_max_length": "128",
}
REFUSED = {
    "seed": "18",
    "model.n_layers": "3",
    "model.ffn_config.moe_top_k": "1",
    "optimizer.name": "sgd",
    "train_loader.dataset.shuffle": "false",
    "train_loader.dataset.packing": "none",
    "train_loader.dataset.hf_kwargs.data_files": "other.jsonl",
    "global_train_batch_size": "16",
    "fsdp_config.state_dict_type": "full",
}


class Watch(Callback):
    """What a run computes with, and its weights at the end."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        self.seen["algorithms"] = [vars(algorithm)["clipping_threshold"] for algorithm in state.algorithms]
        self.seen["callbacks"] = [type(callback).__name__ for callback in state.callbacks]
        self.seen["microbatch"] = state.device_train_microbatch_size

    def batch_start(self, state: State, logger: Logger) -> None:
        self.seen["frozen"] = [name for name, param in state.model.named_parameters() if not param.requires_grad]
        self.seen["dropout"] = {module.p for module in state.model.modules() if isinstance(module, torch.nn.Dropout)}

    def after_train_batch(self, state: State, logger: Logger) -> None:
        self.seen["lr"] = state.optimizers[0].param_groups[0]["lr"]

    def fit_end(self, state: State, logger: Logger) -> None:
        params = state.model.named_parameters()
        self.seen["weights"] = {name: param.full_tensor().detach().clone() for name, param in params}  # pyright: ignore[reportAttributeAccessIssue]


def resumed(path: str, runs: dict[str, list[str]]) -> dict[str, tuple[dict[str, Any], str]]:
    """Of each run, which goes on from the checkpoint of one that trained two batches: what it did and printed."""
    fit(read_config(path, [*COMMON, "max_duration=2ba"]))
    folder, results = Path(path).parent, {}
    for name, overrides in runs.items():
        shutil.copytree(folder / "toy", folder / name, symlinks=True)
        watch = Watch()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            fit(read_config(path, [*COMMON, f"run_name={name}", *overrides]), callbacks=[watch])
        results[name] = watch.seen, out.getvalue()
    return results


def written(changes: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in changes.items()]


def listed(printed: str) -> dict[str, str]:
    """Key -> the rest of its line, of the table of changes."""
    lines = printed.partition("changed since ep0-ba2:\n")[2].splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))


def test_what_is_applied_and_ignored_is_printed_and_so(tmp_path: Path) -> None:
    four = "max_duration=4ba"
    runs = {
        "same": [four],
        "applied": [four, *written(APPLIED)],
        "ignored": [four, *written(IGNORED)],
        "done": ["max_duration=2ba", "loggers={file: {filename: toy.log}}"],
    }
    (results,) = run_ranks(resumed, 1, write_toy_run(tmp_path), runs)
    (same, _), (applied, told), (ignored, told_ignored) = (results[name] for name in ("same", "applied", "ignored"))
    lines = listed(told)
    assert lines.pop("run_name").split() == ["was", "toy,", "now", "applied", "applied"]
    assert lines.pop("max_duration").split() == ["was", "2ba,", "now", "4ba", "applied"]
    assert lines.keys() == APPLIED.keys()
    assert all(line.endswith(" applied") for line in lines.values())
    assert (applied["algorithms"], applied["microbatch"], applied["frozen"]) == (
        [0.5],
        4,
        ["model.transformer.wte.weight"],
    )
    assert "SpeedMonitor" in applied["callbacks"]
    assert (applied["lr"], applied["dropout"]) == (1e-4, {0.1, 0.3})
    assert (tmp_path / "applied" / "ep0-ba3").is_dir()
    assert all(key in listed(told_ignored) and " ignored: " in listed(told_ignored)[key] for key in IGNORED)
    assert all(torch.equal(ignored["weights"][name], weight) for name, weight in same["weights"].items())
    seen, said = results["done"]
    assert seen == {}
    assert f"nothing to do: {tmp_path / 'done' / 'ep0-ba2'} is at batch 2, and max_duration 2ba is 2\n" in said
    assert not Path("toy.log").exists()


def refusals(path: str, cases: list[list[str]]) -> list[str]:
    fit(read_config(path, [*COMMON, "max_duration=2ba"]))
    return [refused_before_the_model_is_built(path, case) for case in cases]


def refused_before_the_model_is_built(path: str, overrides: list[str]) -> str:
    try:
        open_inputs(read_config(path, [*COMMON, *overrides]))
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_what_is_refused_is_named_together(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    shutil.copy(tmp_path / "eval.jsonl", tmp_path / "other.jsonl")
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "copy.jsonl")
    others = written(REFUSED | {"train_loader.dataset.hf_kwargs.data_files": str(tmp_path / "other.jsonl")})
    copied = f"train_loader.dataset.hf_kwargs.data_files={tmp_path}/copy.jsonl"
    of_rows = [[each] for each in others if "packing" in each or "data_files" in each]
    certain = [[each] for each in others if [each] not in of_rows]
    each, together = [*certain, *of_rows], [others, [copied]]
    (said,) = run_ranks(refusals, 1, path, [*each, *together])
    for (change,), text in zip(each, said[:-2], strict=True):
        key, _, value = change.partition("=")
        assert f"but {key} was " in text, text
        assert f", now {value} (" in text
        assert ": put it back, or start another run from the" in text
    first, *lines, fix = said[-2].splitlines()
    assert first.startswith("autoresume is true, and the newest checkpoint is '")
    assert {line.split()[0] for line in lines} == REFUSED.keys()
    assert fix == "  put them back, or start another run from the beginning, with another run_name"
    assert said[-1] == "accepted"


def test_content_that_changed_under_the_same_keys_is_said_to_have(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    run_ranks(refusals, 1, path, [])
    data = tmp_path / "train.jsonl"
    data.write_text(data.read_text().replace("amber", "agate"))
    said = refused_before_the_model_is_built(path, ["optimizer.lr=1e-4"])
    assert "but the rows of train_loader.dataset (fingerprint was " in said
    assert "though no key of theirs has changed: the content of a file, of the tokenizer" in said


def test_a_config_of_other_code_refuses_no_resume(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    run_ranks(refusals, 1, path, [])
    saved = tmp_path / "toy" / "config.yaml"
    saved.write_text(saved.read_text() + "key_of_old: 3\n")
    assert refused_before_the_model_is_built(path, ["optimizer.lr=1e-4"]) == "accepted"
    said = refused_before_the_model_is_built(path, ["model.attn_config.rope_theta=3"])
    assert "model.attn_config.rope_theta was 500.0, now 3.0 (the weights were trained with it)" in said

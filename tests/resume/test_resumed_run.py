"""A resumed run does what it prints about its changes."""

import contextlib
import io
import shutil
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger

from data.base.errors import ConfigError
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.checkpoint.storage.digests import digest_file
from train.checkpoint.storage.manifest import CONFIG, read_manifest, write_manifest
from train.config.load import read_config
from train.run.fit import fit
from train.run.inputs import describe, open_inputs
from train.stability.step_check import StepCheck

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

COMMON = ["autoresume=true", "eval_loader=null", "save_interval=2ba"]
DATA_FILES = "train_loader.dataset.hf_kwargs.data_files"
APPLIED = {
    "optimizer.lr": "1e-4",
    "optimizer.freeze": "['*.wte.weight']",
    "algorithms.gradient_clipping.clipping_threshold": "0.5",
    "model.resid_pdrop": "0.3",
    "model.ffn_config.moe_loss_weight": "0.5",
    "scheduler.name": "constant_with_warmup",
    "callbacks.lr_monitor": "{}",
    "progress_bar": "true",
    "device_train_microbatch_size": "4",
    "save_interval": "1ba",
    "fsdp_config.state_dict_type": "full",
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
    DATA_FILES: "FOLDER/eval.jsonl",
    "global_train_batch_size": "16",
}


class Watch(Callback):
    """The settings that a run uses, and its final weights."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        (check,) = (each for each in state.callbacks if isinstance(each, StepCheck))
        self.seen["clipping"] = vars(check)["_clipping"].clipping_threshold
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


def train(path: str, runs: dict[str, list[str]]) -> dict[str, tuple[dict[str, Any], str]]:
    """A run of two batches and the runs that resume from its checkpoint: the settings and the output of each."""
    fit(read_config(path, [*COMMON, "max_duration=2ba"]))
    folder, results = Path(path).parent, {}
    for name, overrides in runs.items():
        shutil.copytree(folder / "toy", folder / name, symlinks=True)
        # The state that a run leaves if it is killed while it deletes a checkpoint.
        (folder / name / ".part-removed-ep0-ba1-0123abcd").mkdir()
        (folder / name / "latest").unlink()
        watch = Watch()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            fit(read_config(path, [*COMMON, f"run_name={name}", *overrides]), callbacks=[watch])
        results[name] = watch.seen, out.getvalue()
    return results


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[dict[str, Any], str]]]:
    """The folder, and the result of `train`."""
    folder, four = tmp_path_factory.mktemp("trained"), "max_duration=4ba"
    runs = {
        "same": [four],
        "applied": [four, *written(APPLIED)],
        "ignored": [four, *written(IGNORED)],
        "done": ["max_duration=2ba", f"loggers={{file: {{filename: {folder}/done.log}}}}"],
    }
    (results,) = run_ranks(train, 1, write_toy_run(folder), runs)
    return folder, results


@pytest.fixture
def path(trained: tuple[Path, Any], tmp_path: Path) -> str:
    """The config of a run whose save folder is a copy of that of the first run."""
    folder, name = trained[0], tmp_path.name
    shutil.copytree(folder / "toy", folder / name)
    config = folder / f"{name}.yaml"
    config.write_text((folder / "config.yaml").read_text().replace("run_name: toy", f"run_name: {name}"))
    return str(config)


def save_folder(path: str) -> Path:
    return Path(path).with_suffix("")


def written(changes: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in changes.items()]


def listed(printed: str) -> dict[str, str]:
    """Key -> the rest of its line in the table of changes."""
    lines = printed.partition("changed since ep0-ba2:\n")[2].splitlines()
    return dict(line.split(maxsplit=1) for line in takewhile(lambda line: line.startswith("  "), lines))


def test_applied_changes_are_printed_and_take_effect(trained: tuple[Path, Any]) -> None:
    folder, results = trained
    applied, printed = results["applied"]
    lines = listed(printed)
    assert lines.pop("run_name").split() == ["was", "toy,", "now", "applied", "applied"]
    assert lines.pop("max_duration").split() == ["was", "2ba,", "now", "4ba", "applied"]
    assert lines.keys() == APPLIED.keys()
    assert all(line.endswith(" applied") for line in lines.values())
    assert (applied["clipping"], applied["microbatch"]) == (0.5, 4)
    assert applied["frozen"] == ["model.transformer.wte.weight"]
    assert "LRMonitor" in applied["callbacks"]
    assert (applied["lr"], applied["dropout"]) == (1e-4, {0.1, 0.3})
    assert (folder / "applied" / "ep0-ba3").is_dir()


def test_ignored_changes_are_printed_and_have_no_effect(trained: tuple[Path, Any]) -> None:
    (same, _), (ignored, printed) = (trained[1][name] for name in ("same", "ignored"))
    lines = listed(printed)
    assert lines.keys() - IGNORED.keys() == {"run_name", "max_duration"}
    assert all(" ignored: " in lines[key] for key in IGNORED)
    assert all(torch.equal(ignored["weights"][name], weight) for name, weight in same["weights"].items())


def test_a_run_at_max_duration_has_nothing_to_do(trained: tuple[Path, Any]) -> None:
    folder, results = trained
    seen, printed = results["done"]
    assert seen == {}
    assert (
        f"nothing to do: {folder / 'done' / 'ep0-ba2'} is at batch 2, and max_duration 2ba ends at batch 2\n" in printed
    )
    assert not (folder / "done.log").exists()
    assert not list((folder / "done").glob(".part*"))
    assert (folder / "done" / "latest").resolve() == folder / "done" / "ep0-ba2"


def refused_before_the_model_is_built(path: str, overrides: list[str]) -> str:
    placed = [change.replace("FOLDER", str(Path(path).parent)) for change in overrides]
    try:
        open_inputs(read_config(path, [*COMMON, *placed]))
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_a_refused_change_is_named(path: str) -> None:
    for change in written(REFUSED):
        key, _, value = change.partition("=")
        message = refused_before_the_model_is_built(path, [change])
        assert f"but {key} was " in message, message
        assert f", now {value} (" in message.replace(str(Path(path).parent), "FOLDER")
        assert ": restore the old value, or start a new run from the" in message


def test_all_refused_changes_are_named_together(path: str) -> None:
    first, *lines, fix = refused_before_the_model_is_built(path, written(REFUSED)).splitlines()
    assert first.startswith("autoresume is true, and the newest checkpoint is '")
    assert {line.split()[0] for line in lines} == REFUSED.keys()
    assert fix == "  restore the old values, or start a new run from the beginning with another run_name"


def test_the_same_rows_from_another_place_are_accepted(path: str) -> None:
    copied = shutil.copy(Path(path).parent / "train.jsonl", Path(path).parent / "copied.jsonl")
    assert refused_before_the_model_is_built(path, [f"{DATA_FILES}={copied}"]) == "accepted"


def test_changed_content_under_unchanged_keys_is_reported(path: str) -> None:
    data = Path(path).parent / "train.jsonl"
    before = data.read_text()
    data.write_text(before.replace("amber", "agate"))
    message = refused_before_the_model_is_built(path, ["optimizer.lr=1e-4"])
    data.write_text(before)
    assert "but the rows of train_loader.dataset (fingerprint was " in message
    assert "although no key that determines these rows has changed: the content of a file, of the tokenizer" in message


def test_a_config_of_another_version_does_not_prevent_a_resume(path: str) -> None:
    with_config(save_folder(path), (save_folder(path) / "config.yaml").read_text() + "key_of_old: 3\n")
    config = read_config(path, [*COMMON, "optimizer.lr=1e-4"])
    (line,) = (line for line in describe(open_inputs(config), config) if "changes since" in line)
    assert line.startswith("changes since ep0-ba2 cannot be listed: ")
    assert line.endswith("key_of_old is not a key of any section")
    message = refused_before_the_model_is_built(path, ["model.attn_config.rope_theta=3"])
    assert "model.attn_config.rope_theta was 500.0, now 3.0 (the weights were trained with the old value)" in message


def with_config(folder: Path, text: str) -> None:
    """Replace the config of the checkpoint, as if it had been written with it."""
    checkpoint = folder / "ep0-ba2"
    (checkpoint / CONFIG).write_text(text)
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    write_manifest(checkpoint, replace(manifest, files={**manifest.files, CONFIG: digest_file(checkpoint / CONFIG)}))


def lines_of(path: str, overrides: list[str]) -> dict[str, str]:
    config = read_config(path, overrides)
    return listed("\n".join(describe(open_inputs(config), config)))


def test_the_checkpoints_own_config_is_compared(path: str) -> None:
    beside = save_folder(path) / "config.yaml"
    beside.write_text(beside.read_text().replace("lr: 0.003", "lr: 0.7"))
    with_config(save_folder(path), beside.read_text().replace("lr: 0.7", "lr: 0.5"))
    line = lines_of(path, [*COMMON, "max_duration=2ba"])["optimizer.lr"]
    assert line.split() == ["was", "0.5,", "now", "0.003", "applied"]


def test_a_run_that_loads_the_whole_state_by_load_path_reports_the_same(path: str) -> None:
    other = [f"load_path={save_folder(path) / 'ep0-ba2'}", "run_name=other", "eval_first=true"]
    lines = lines_of(path, [*other, "train_loader.name=text"])
    assert lines["eval_first"].split() == ["was", "false,", "now", "true", "applied"]
    assert lines["train_loader.name"].endswith("ignored: both loaders read the same data")
    assert lines_of(path, [*other, "load_weights_only=true"]) == {}

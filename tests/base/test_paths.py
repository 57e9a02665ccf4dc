"""Every key and argument that is a path, with two values that no system call accepts."""

import importlib
import json
import re
from pathlib import Path

import pytest

from data.base.errors import ConfigError, Problems
from data.base.paths import MAX_NAME_BYTES, fill_placeholders, refuse_path
from data.config.suggest import known_paths
from tests.helpers.load_script import load_script
from tests.helpers.small_config import load, refusal
from train.checkpoint.save_folder import fill_in, local_folder, run_name_of
from train.config.ranks import check_run_name
from train.config.schema import TrainConfig
from train.main import main

LONG = "x" * (MAX_NAME_BYTES + 1)
BAD = {"long": (LONG, f"{MAX_NAME_BYTES + 1} bytes"), "NUL": ("a\0b", "NUL byte")}
NO_PATHS = {
    *("model.name", "tokenizer.kwargs.model_name", "tokenizer.kwargs.encoding_name"),
    *("loggers.wandb.name", "loggers.mlflow.experiment_name", "loggers.mlflow.run_name"),
    *(f"{part}.name" for part in ("train_loader", "eval_loader", "optimizer", "scheduler")),
}
_PATH_WORD = re.compile(r"(folder|path|filename|_file|_files|_dir|local|remote|text|split|(?<!kwargs\.)name)$")
PATHS = [
    key
    for key in known_paths(TrainConfig)
    if _PATH_WORD.search(key) and key not in NO_PATHS and not re.search(r"stages\[0\]|hf_kwargs\.name", key)
]
DATASET = "{max_seq_len: 64, hf_name: json}"
STREAMS = "{max_seq_len: 64, streams: {NAME: {hf_name: json}}}"
AROUND = (
    f"eval_loader={{name: text, dataset: {DATASET}}}",
    "callbacks.hf_checkpointer={save_folder: x, save_interval: 1ba}",
    "save_folder=x",
)


def test_all_kinds_of_keys_are_included():
    last = {key.rpartition(".")[2] for key in PATHS}
    wanted = {"run_name", "save_folder", "load_path", "filename", "log_dir", "vocab_file", "cache_dir", "local", "text"}
    assert wanted | {"remote", "hf_name", "data_dir", "data_files", "pretrained_model_name_or_path", "split"} <= last
    assert "tokenizer.name" in PATHS


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("key", PATHS)
def test_path_in_a_config(tmp_path, key, kind):
    value, why = BAD[kind]
    streams = [f"{key.partition('.')[0]}.dataset={STREAMS}"] if ".streams." in key else []
    message = refusal(tmp_path, *AROUND, *streams, f"{key}={json.dumps(value)}")
    assert re.match(rf"(small\.yaml: )?{re.escape(key)} (is|has) '", message)
    assert why in message
    assert "\n" not in message
    assert len(message) < 300


ARGUMENTS = {
    "generate": ["folder", "--file", "--output"],
    "evaluate": ["folder", "--exact_match", "--json"],
    "convert_checkpoint_to_hf": ["--composer_path", "--hf_output_path"],
    "convert_finetuning_dataset": ["--out_root", "--local", "--dataset", "--tokenizer"],
    "convert_text_to_mds": ["--path", "--input_folder"],
    "plan": ["config", "--png", "--gpu"],
    "inspect_data": ["config", "--html", "--png"],
    "trace_documents": ["RUN", "--json"],
    "make_tiny_dbrx": ["--config", "folder"],
    "verify": ["folder", "--composer_path"],
}
GIVEN = {
    "generate": {"folder": "x"},
    "evaluate": {"folder": "x", "--exact_match": "x.jsonl"},
    "convert_checkpoint_to_hf": {"--composer_path": "x", "--hf_output_path": "x"},
    "convert_finetuning_dataset": {"--dataset": "json", "--out_root": "x", "--max_seq_len": "64"},
    "convert_text_to_mds": {"--out_root": "x", "--tokenizer": "x"},
    "plan": {"config": "x.yaml"},
    "inspect_data": {"config": "x.yaml"},
    "trace_documents": {"RUN": "x", "--steps": "1"},
    "make_tiny_dbrx": {"folder": "x"},
    "verify": {"folder": "x", "--composer_path": "x"},
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(("script", "name"), [(script, name) for script, names in ARGUMENTS.items() for name in names])
def test_path_on_a_command_line(capsys, script, name, kind):
    module = importlib.import_module("train.export.verify") if script == "verify" else load_script(script)
    value, why = BAD[kind]
    given = {**GIVEN[script], name: value}
    flags = [part for key, text in given.items() if key.startswith("--") for part in (key, text)]
    assert module.main([text for key, text in given.items() if not key.startswith("--")] + flags) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {'the config' if name.endswith('config') else name} ")
    assert why in message
    assert message.count("\n") == 1
    assert len(message) < 300


@pytest.mark.parametrize("value", [LONG, f"{LONG}=3", "a\0b"])
def test_config_of_train(capsys, value):
    assert main([value]) == 2
    assert capsys.readouterr().err.startswith("error: the config ")


def test_a_run_name_as_part_of_a_longer_name(tmp_path, monkeypatch):
    config = load(tmp_path, "save_folder=runs/{run_name}-again/x")
    with pytest.raises(ConfigError, match=r"save_folder is 'runs/xxx.*which has a name of 256 bytes"):
        local_folder(config, "x" * 250)


NAMES = {
    "/abs": "the name of a folder",
    "a/b": "the name of a folder",
    "../x": "the name of a folder",
    "..": "the name of a folder",
    ".": "the name of a folder",
    "a\nb": "unprintable",
    "a\x1b[2J": "unprintable",
    "a\u202eb": "unprintable",
    "{run_name}": "without braces",
    "a{0.__class__}": "without braces",
    "a\0b": "NUL byte",
    "x" * 5000: "5,000 bytes",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_name_is_a_name(tmp_path, monkeypatch, name):
    message = refusal(tmp_path, *AROUND, f"run_name={json.dumps(name)}")
    assert re.match(r"(small\.yaml: )?run_name (is|has) ", message)
    assert NAMES[name] in message
    if "\0" not in name:
        monkeypatch.setenv("RUN_NAME", name)
        config = load(tmp_path)
        for check in (run_name_of, check_run_name):
            with pytest.raises(ConfigError, match=r"run_name \(from \$RUN_NAME\) is ") as caught:
                check(config)
            assert NAMES[name] in str(caught.value)


@pytest.mark.parametrize("name", ["mine", "a b", "a.b-c_1", "模型", ".hidden", "x" * 255])
def test_valid_names_are_accepted(tmp_path, monkeypatch, name):
    monkeypatch.setenv("RUN_NAME", name)
    assert load(tmp_path, f"run_name={json.dumps(name)}").run_name == name == run_name_of(load(tmp_path))
    assert fill_in("runs/{run_name}/x", name, "save_folder", "staging") == Path("runs") / name / "x"


FILLED = {
    "save_folder": "{run_name}",
    "callbacks.hf_checkpointer.save_folder": "{run_name}",
    "loggers.file.filename": "{run_name} and {rank}",
    "loggers.tensorboard.log_dir": "{run_name}",
    "log_folder": "{run_name}",
}
EVALUATED = ("{run_name.__class__}", "{run_name!r}", "{run_name:>9}", "{0}", "{}", "{other}", "{{run_name}}", "{", "a}")


@pytest.mark.parametrize("key", FILLED)
@pytest.mark.parametrize("text", EVALUATED)
def test_only_placeholders_are_filled_in(tmp_path, key, text):
    message = refusal(tmp_path, *AROUND, f"{key}={json.dumps(f'runs/{text}/x')}")
    assert f"{key} is 'runs/{text}/x', but " in message
    assert FILLED[key] in message
    assert f"remove '{'{' if text.startswith('{{') else text[-1] if text == 'a}' else text}'" in message


def test_filled_in_values_are_not_filled_in_again():
    assert fill_placeholders("{a}{b}", {"a": "{b}", "b": "{a.__class__}"}) == "{b}{a.__class__}"
    with pytest.raises(ConfigError, match=r"save_folder is '\{x\}', but the only placeholder is \{run_name\}"):
        fill_in("{x}", "a", "save_folder", "staging")
    with pytest.raises(ConfigError, match=r"run_name is '../x', but it must be the name of a folder"):
        fill_in("{run_name}", "../x", "save_folder", "staging")


@pytest.mark.parametrize("key", ["project", "entity", "group", "name", "tags"])
@pytest.mark.parametrize("text", ["a\0b", "a\nb", "x" * 5000])
def test_labels_of_a_service(tmp_path, key, text):
    value = json.dumps([text] if key == "tags" else text)
    assert f"loggers.wandb.{key}" in (message := refusal(tmp_path, f"loggers.wandb={{{key}: {value}}}"))
    assert len(message) < 300
    assert "\n" not in message


@pytest.mark.parametrize("key", ["dataset.split", "dataset.hf_kwargs.name", "dataset.hf_kwargs.revision"])
@pytest.mark.parametrize("text", ["a\0b", "x" * 5000])
def test_names_in_a_dataset(tmp_path, key, text):
    message = refusal(tmp_path, f"train_loader.{key}={json.dumps(text)}")
    assert f"train_loader.{key} " in message
    assert len(message) < 300


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "a\x1b[2Jb", "x" * 200])
def test_names_of_streams(tmp_path, text):
    message = refusal(tmp_path, f"train_loader.dataset={STREAMS.replace('NAME', json.dumps(text))}")
    assert "train_loader.dataset.streams has a name that is " in message
    assert len(message) < 300
    assert "\n" not in message


def test_a_problem_that_is_found_twice_is_reported_once():
    problems = Problems()
    for text in ("a", "b", "a"):
        with problems.collect():
            raise ConfigError(text)
    with pytest.raises(ConfigError, match=r"^2 problems\n  a\n  b$"):
        problems.raise_if_any()


def test_what_can_be_a_path():
    for value in (None, "x" * 255, "/".join(["x" * 200] * 20), f"s3://bucket/{LONG}", ["a", None], {"train": "b"}):
        refuse_path("key", value)
    with pytest.raises(ValueError, match=r"key is 'é+\.*.*which has a name of 256 bytes"):
        refuse_path("key", "é" * 128)
    with pytest.raises(ValueError, match=r"which has 4,2\d\d bytes, but the maximum is 4,095"):
        refuse_path("key", {"train": ["/".join(["x" * 200] * 21)]})

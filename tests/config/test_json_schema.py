import json
from pathlib import Path

import pytest
import yaml
from check_jsonschema.cli import main as check_jsonschema
from jsonschema import Draft202012Validator

from data.base.errors import ConfigError
from data.config.suggest import known_paths
from tests.helpers.small_config import LEAST, load, refusal
from train.config.json_schema import explain, json_schema
from train.config.schema import TrainConfig
from train.main import main

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "yamls" / "schema.json"
KEYS = ROOT / "docs" / "keys.md"
YAMLS = sorted(path for path in (ROOT / "yamls").rglob("*.yaml") if path.parent.name != "curation")

MISSPELT = {
    "max_seq_len: 64": "max_seq_lenn: 64",
    "model: {preset": "model: {presett",
    "name: some/folder": "nam: some/folder",
    "train_loader:": "train_loadr:",
    "hf_name: json": "hf_nane: json",
    "optimizer: {": "optimiser: {",
    "name: adamw": "nmae: adamw",
    "scheduler: {": "schedular: {",
    "max_duration: 10ba": "max_durations: 10ba",
    "global_train_batch_size: 8": "global_batch_size: 8",
}
INVALID = {
    "preset: tiny": "preset: tinny",
    "name: finetuning": "name: finetunning",
    "lr: 1e-3": "lr: -1.0e-3",
    "name: adamw": "name: adam",
    "name: constant_with_warmup": "name: constant_with_warmup, t_warmup: 10 batches",
    "max_duration: 10ba": "max_duration: 10",
    "global_train_batch_size: 8": "global_train_batch_size: 0",
    "hf_name: json": "hf_name: json, target_prompts: some",
    "scheduler: {name: constant_with_warmup}": "scheduler:",
}


def checked(*files: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        check_jsonschema(["--schemafile", str(SCHEMA), *map(str, files)])
    return int(ended.value.code or 0)


def test_the_committed_schema_is_up_to_date(capsys):
    assert main(["--schema"]) == 0
    assert capsys.readouterr().out == SCHEMA.read_text(encoding="utf-8"), "python train.py --schema > yamls/schema.json"
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_the_committed_page_of_keys_is_generated_from_the_code(capsys):
    assert main(["--keys"]) == 0
    page = capsys.readouterr().out
    assert page == KEYS.read_text(encoding="utf-8"), "python train.py --keys > docs/keys.md"
    for path in known_paths(TrainConfig):
        assert f"\n| `{path.rpartition('.')[2]}` | " in page or path.endswith("NAME"), path


def test_shipped_yamls_name_the_schema_and_satisfy_it(capsys):
    for path in YAMLS:
        assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=../schema.json\n"), path
    assert checked(*YAMLS) == 0


def test_the_schema_rejects_the_misspelt_yamls_that_the_reader_rejects(tmp_path, capsys):
    text = LEAST.replace("lr: 1e-3", "lr: 1.0e-3")
    files = []
    for number, (valid, invalid) in enumerate([*MISSPELT.items(), *INVALID.items()]):
        valid = valid.replace("1e-3", "1.0e-3")
        assert text.count(valid) == 1
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(text.replace(valid, invalid), encoding="utf-8")
        refusal(tmp_path, text=text.replace(valid, invalid))
    (tmp_path / "valid.yaml").write_text(text, encoding="utf-8")
    assert len(MISSPELT) == 10
    assert checked(tmp_path / "valid.yaml") == 0
    for file in files:
        assert checked(file) == 1, file.read_text()


@pytest.mark.parametrize(
    "override",
    [
        "seed=${max_seq_len}",
        "max_duration='${variables.n}ba'",
        "model.ffn_config=null",
        "fsdp_config={limit_all_gathers: true}",
        "eval_loader=${train_loader}",
        "lora={r: 8, alpha: 16, target_modules: [attn]}",
        "variables=null",
        "train_loader.dataset.packing_ratio=null",
        "train_loader.dataset.target_prompts=length>=8",
    ],
)
def test_the_schema_accepts_what_the_reader_accepts(override):
    key, _, text = override.partition("=")
    tree = yaml.safe_load(LEAST.replace("1e-3", "1.0e-3")) | {"variables": {"n": 3}}
    node = tree
    for part in key.split(".")[:-1]:
        node = node.setdefault(part, {})
    node[key.rpartition(".")[2]] = yaml.safe_load(text) if not text.startswith("${") else text
    Draft202012Validator(json_schema()).validate(tree)


def test_every_key_is_explained():
    paths = list(known_paths(TrainConfig))
    assert len(paths) > 150
    for path in paths:
        lines = explain(path).splitlines()
        assert lines[0] == path
        assert lines[1].startswith("  type     ")
        assert lines[2].startswith("  default  ") or path.endswith("NAME")
        assert lines[3 if lines[2].startswith("  default") else 2].strip()


def test_the_explanation_of_a_key(capsys):
    assert main(["--explain", "train_loader.dataset.excess_length", "optimizer.param_groups[0].lr"]) == 0
    shown = capsys.readouterr().out
    assert "type     truncate_response or drop or error\n" in shown
    assert 'default  "truncate_response"\n' in shown
    assert "type     a finite number or null, above 0\n" in shown


def test_a_key_that_cannot_be_explained(capsys):
    assert main(["--explain", "optimizer.lrr"]) == 2
    assert capsys.readouterr().err == "error: optimizer.lrr is not a key; did you mean lr?\n"
    assert main(["--explain"]) == 2
    assert main(["--explain", ""]) == 2
    assert main(["--schema", "seed"]) == 2
    assert main(["--keys", "seed"]) == 2
    with pytest.raises(ConfigError, match=r"model.ffn_config.ffn_type is not a key: every layer has dropless experts"):
        explain("model.ffn_config.ffn_type")
    with pytest.raises(ConfigError, match="seed has no keys below it"):
        explain("seed.x")


def test_the_schema_has_the_defaults_of_the_reader(tmp_path):
    config, schema = load(tmp_path), json_schema()
    for name, key in schema["properties"].items():
        if isinstance(key.get("default"), int | float | str | bool):
            assert getattr(config, name) == key["default"]

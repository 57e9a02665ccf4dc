import json
import re
from pathlib import Path

import pytest

from data.config.suggest import known_paths
from tests.helpers.small_config import LEAST, load, refusal
from train.config import llm_foundry as upstream
from train.config.llm_foundry import LLM_FOUNDRY, RULES, table, verdict
from train.config.schema import TrainConfig

# LEAST and the sections whose keys are changed one by one.
WHOLE = f"""{LEAST}
eval_loader:
  name: finetuning
  dataset: {{hf_name: json, max_seq_len: '${{max_seq_len}}'}}
algorithms: {{gradient_clipping: {{clipping_type: value, clipping_threshold: 2}}}}
"""
PAGE = Path(__file__).parents[2] / "docs" / "llm-foundry.md"


@pytest.mark.parametrize("key", LLM_FOUNDRY)
def test_each_row_of_the_table_matches_the_reader(tmp_path, key, monkeypatch):
    # A local folder in place of the repository on the hub.
    weights = LLM_FOUNDRY["model.pretrained_model_name_or_path"]
    (tmp_path / weights).mkdir(parents=True)
    (tmp_path / weights / "config.json").write_text('{"model_type": "dbrx", "max_seq_len": 4096}')
    monkeypatch.chdir(tmp_path)
    model = f"model={{pretrained_model_name_or_path: {weights}}}"
    exports = "callbacks.hf_checkpointer={save_folder: out, save_interval: 1dur}"
    overrides = (model, exports, "save_folder=runs", f"{key}={json.dumps(LLM_FOUNDRY[key])}")
    status, note = verdict(key)
    if status == "refused":
        assert note in refusal(tmp_path, *overrides, text=WHOLE)
        return
    value = load(tmp_path, *overrides, text=WHOLE)
    if status == "supported":
        for part in key.split("."):
            value = getattr(value, part)
        wanted = LLM_FOUNDRY[key]
        if key == "model.pretrained_model_name_or_path":
            wanted = str(tmp_path / weights)
        assert value == (64 if wanted == "${max_seq_len}" else wanted) or wanted == {}


def test_the_table_has_rows_of_every_status():
    assert {verdict(key)[0] for key in LLM_FOUNDRY} == {"refused", "supported", "ignored"}
    assert all(verdict(key)[1] for key in LLM_FOUNDRY if verdict(key)[0] != "supported")


def test_the_docs_show_the_table():
    shown = re.search(r"<!-- upstream-table -->\n+(.*?)\n+<!-- upstream-table -->", PAGE.read_text("utf-8"), re.DOTALL)
    assert shown is not None, "docs/llm-foundry.md lacks the table between its two <!-- upstream-table --> markers"
    assert shown[1] == table()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "fsdp_config.limit_all_gathers=false",
            "fsdp_config.limit_all_gathers is false, which is not supported: FSDP2 always",
        ),
        ("fsdp_config.limit_all_gathers=1", "fsdp_config.limit_all_gathers is 1, which is not supported"),
        (
            "train_loader.drop_last=false",
            "train_loader.drop_last is false, which is not supported: every batch is full",
        ),
        ("train_loader.dataset.packing_ratio=null", "use `packing: none` to disable packing"),
        ("model.init_device=cpu", "model.init_device is 'cpu', which is not supported: every rank builds the model"),
        ("model.config_overrides={n_layers: 2}", "write these keys directly under model"),
        ("fsdp_config.sync_module_states=true", "a setting of FSDP1, which FSDP2 does not have: remove the key"),
        ("fsdp_config.te_checkpoint_wrapper=true", "a setting of FSDP1, which FSDP2 does not have: remove the key"),
        ("fsdp_config.sharding_strategy=SHARD_GRAD_OP", "use FULL_SHARD with reshard_after_forward: false"),
        ("device_train_microbatch_size=auto", "device_train_microbatch_size is 'auto': use a number"),
        ("model.trust_remote_code=true", "code from the hub is never executed"),
        ("model.expansion_ratio=4", "model.expansion_ratio is not supported: use ffn_config.ffn_hidden_size"),
        (
            "train_loader.timeout=300",
            "train_loader.timeout is 300, which is not supported: there is a built-in time limit for workers",
        ),
        ("expandable_segments=true", "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
        ("global_seed=17", "global_seed is not supported: use seed, or define global_seed under variables"),
        ("model.attn_config.attn_impl=torch", "model.attn_config.attn_impl is 'torch': use sdpa"),
        *((f"{key}=1", f"{key} is 1: a plain number means epochs in Composer") for key in upstream.EPOCHS[:4]),
        ("eval_interval=1", "in Dropless, write 1ep, or 1ba for batches"),
    ],
)
def test_keys_of_llm_foundry_are_refused_with_a_hint(tmp_path, override, message):
    assert message in refusal(tmp_path, override)


def test_ignored_keys_do_not_change_the_config(tmp_path):
    keys = ("fsdp_config.limit_all_gathers=true", "train_loader.drop_last=true", "model.init_device=meta")
    assert load(tmp_path, *keys) == load(tmp_path)


def test_no_rule_applies_to_a_known_key():
    assert [path for path in known_paths(TrainConfig) if upstream.rule_for(path)] == []
    assert all(rule.hint for rule in RULES.values())

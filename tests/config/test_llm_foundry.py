import json
import re
from pathlib import Path

import pytest

from data.config.suggest import known_paths
from tests.helpers.small_config import LEAST, load, refusal
from train.config import llm_foundry as upstream
from train.config.llm_foundry import LLM_FOUNDRY, RULES, table, verdict
from train.config.schema import TrainConfig

# With the parts whose keys are changed one by one.
WHOLE = f"""{LEAST}
eval_loader:
  name: finetuning
  dataset: {{hf_name: json, max_seq_len: '${{max_seq_len}}'}}
algorithms: {{gradient_clipping: {{clipping_type: value, clipping_threshold: 2}}}}
"""
PAGE = Path(__file__).parents[2] / "docs" / "llm-foundry.md"


@pytest.mark.parametrize("key", LLM_FOUNDRY)
def test_each_row_of_the_table_says_what_the_reader_does(tmp_path, key, monkeypatch):
    # A folder, where there it is a repository.
    weights = LLM_FOUNDRY["model.pretrained_model_name_or_path"]
    (tmp_path / weights).mkdir(parents=True)
    (tmp_path / weights / "config.json").write_text('{"model_type": "dbrx", "max_seq_len": 4096}')
    monkeypatch.chdir(tmp_path)
    model = f"model={{pretrained_model_name_or_path: {weights}}}"
    exports = "callbacks.hf_checkpointer={save_folder: out, save_interval: 1dur}"
    overrides = (model, exports, "save_folder=runs", f"{key}={json.dumps(LLM_FOUNDRY[key])}")
    taken, say = verdict(key)
    if taken == "refused":
        assert say in refusal(tmp_path, *overrides, text=WHOLE)
        return
    value = load(tmp_path, *overrides, text=WHOLE)
    if taken == "taken":
        for part in key.split("."):
            value = getattr(value, part)
        wanted = LLM_FOUNDRY[key]
        if key == "model.pretrained_model_name_or_path":
            wanted = str(tmp_path / weights)
        assert value == (64 if wanted == "${max_seq_len}" else wanted) or wanted == {}


def test_the_table_speaks_of_every_kind():
    assert {verdict(key)[0] for key in LLM_FOUNDRY} == {"refused", "taken", "taken when it says so"}
    assert all(verdict(key)[1] for key in LLM_FOUNDRY if verdict(key)[0] != "taken")


def test_the_docs_show_the_table():
    shown = re.search(r"<!-- upstream-table -->\n+(.*?)\n+<!-- upstream-table -->", PAGE.read_text("utf-8"), re.DOTALL)
    assert shown is not None, "docs/llm-foundry.md lacks the table between its two <!-- upstream-table --> markers"
    assert shown[1] == table()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "fsdp_config.limit_all_gathers=false",
            "fsdp_config.limit_all_gathers is false, which cannot be: FSDP2 always",
        ),
        ("fsdp_config.limit_all_gathers=1", "fsdp_config.limit_all_gathers is 1, which cannot be"),
        ("train_loader.drop_last=false", "train_loader.drop_last is false, which cannot be: every batch is full"),
        ("train_loader.dataset.packing_ratio=null", "write `packing: none` for no packing"),
        ("model.init_device=cpu", "model.init_device is 'cpu', which cannot be: every rank builds on meta"),
        ("model.config_overrides={n_layers: 2}", "the keys are written in model itself"),
        ("fsdp_config.sync_module_states=true", "a setting of FSDP1, which FSDP2 does without: leave it out"),
        ("fsdp_config.te_checkpoint_wrapper=true", "a setting of FSDP1, which FSDP2 does without: leave it out"),
        ("fsdp_config.sharding_strategy=SHARD_GRAD_OP", "write FULL_SHARD with reshard_after_forward: false"),
        ("device_train_microbatch_size=auto", "device_train_microbatch_size is 'auto': write a number"),
        ("model.trust_remote_code=true", "no code from a hub is ever run"),
        ("model.expansion_ratio=4", "model.expansion_ratio is not taken: write ffn_config.ffn_hidden_size"),
        ("train_loader.timeout=300", "train_loader.timeout is 300, which cannot be: workers have a limit of their own"),
        ("expandable_segments=true", "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
        ("global_seed=17", "global_seed is not taken: write seed, or put it under variables:"),
        ("model.attn_config.attn_impl=torch", "model.attn_config.attn_impl is 'torch': write sdpa"),
        *((f"{key}=1", f"{key} is 1: a number alone is epochs in Composer") for key in upstream.EPOCHS[:4]),
        ("eval_interval=1", "here write 1ep, or 1ba for batches"),
    ],
)
def test_what_llm_foundry_has_and_this_has_not(tmp_path, override, said):
    assert said in refusal(tmp_path, override)


def test_accepted_keys_leave_no_trace(tmp_path):
    keys = ("fsdp_config.limit_all_gathers=true", "train_loader.drop_last=true", "model.init_device=meta")
    assert load(tmp_path, *keys) == load(tmp_path)


def test_no_rule_hides_a_key_of_ours():
    assert [path for path in known_paths(TrainConfig) if upstream.rule_for(path)] == []
    assert all(rule.say for rule in RULES.values())

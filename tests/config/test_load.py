from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import yaml

from data.base.errors import ConfigError, os_errors_named
from data.config.sections import Section, Unavailable
from data.config.suggest import known_paths
from tests.helpers.small_config import LEAST, load, placed_refusal, refusal
from train.config.callbacks import LRMonitorConfig
from train.config.load import check_vocab, load_config, read_config, resolve_pretrained, to_yaml
from train.config.redaction import masked_yaml, saved_yaml
from train.config.schema import TrainConfig

NAMES = "it must be 132b or 73b or 35b or 18b or 9b or tiny"


def test_values_defaults_and_references_are_read(tmp_path):
    config = load(tmp_path)
    assert (config.max_seq_len, config.train_loader.dataset.max_seq_len) == (64, 64)
    assert config.optimizer.lr == 1e-3
    assert config.fsdp_config is not None
    assert config.fsdp_config.sharding_strategy == "FULL_SHARD"


def test_keys_of_the_yaml_override_the_preset(tmp_path):
    model = load(tmp_path, "model.ffn_config.moe_top_k=2", "model.attn_config=null", "model.n_layers=3").model
    assert (model.d_model, model.n_layers) == (64, 3)
    assert (model.ffn_config.ffn_hidden_size, model.ffn_config.moe_top_k) == (64, 2)
    assert model.attn_config.kv_n_heads == 2


def test_a_preset_can_be_interpolated_from(tmp_path):
    assert load(tmp_path, "max_seq_len=${model.max_seq_len}").train_loader.dataset.max_seq_len == 512


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optimizer.lr=1e-5", lambda c: c.optimizer.lr == 1e-5),
        ("optimizer.lr=1", lambda c: c.optimizer.lr == 1.0 and type(c.optimizer.lr) is float),
        ("optimizer.betas=[0.5, 0.6]", lambda c: c.optimizer.betas == [0.5, 0.6]),
        ("run_name='7'", lambda c: c.run_name == "7"),
        ("run_name=a=b", lambda c: c.run_name == "a=b"),
        ("run_name=", lambda c: c.run_name is None),
        ("fsdp_config=null", lambda c: c.fsdp_config is None),
        ("loggers=null", lambda c: c.loggers.wandb is None),
        ("callbacks.lr_monitor={}", lambda c: c.callbacks.lr_monitor == LRMonitorConfig()),
        ("callbacks.lr_monitor=null", lambda c: c.callbacks.lr_monitor is None),
        ("fsdp_config.activation_checkpointing=true", lambda c: c.fsdp_config.activation_checkpointing is True),
        ("fsdp_config.activation_checkpointing=block", lambda c: c.fsdp_config.activation_checkpointing == "block"),
        (
            "train_loader.dataset.hf_kwargs={data_files: [a, b]}",
            lambda c: c.train_loader.dataset.hf_kwargs.data_files[1] == "b",
        ),
        ("model.attn_config.clip_qkv=null", lambda c: c.model.attn_config.clip_qkv is None),
    ],
)
def test_overrides(tmp_path, override, read):
    assert read(load(tmp_path, override))


def test_an_override_reaches_into_a_list(tmp_path):
    config = load(tmp_path, "optimizer.param_groups=[{match: [a]}, {match: [b]}]", "optimizer.param_groups.1.lr=2")
    assert [group.lr for group in config.optimizer.param_groups] == [None, 2.0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("foo", "'foo' is not key=value, such as optimizer.lr=1e-5"),
        ("--lr=3", "the key '--lr' must consist of names separated by dots: use lr=3, without dashes"),
        ("a..b=3", "the key 'a..b' must consist of names separated by dots"),
        ("max_seq_len.a=3", "max_seq_len.a=3: max_seq_len is 64, which has no keys"),
        ("run_name={a:", "'run_name={a:': the value is not valid YAML"),
        (
            "run_name=${",
            "run_name is '${', in which ${ does not begin a reference such as ${max_seq_len}: close the brace",
        ),
        ("model={d_model: 'a ${x'}", "model.d_model is 'a ${x', in which ${ does not begin a reference"),
    ],
)
def test_overrides_that_cannot_be_parsed_are_refused(tmp_path, override, message):
    assert message in refusal(tmp_path, override)


def test_index_past_the_end_of_a_list(tmp_path):
    message = refusal(tmp_path, "optimizer.betas=[0.9, 0.95]", "optimizer.betas.2=0.1")
    assert message == "optimizer.betas.2=0.1: optimizer.betas has 2 items: the index '2' must be below 2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeed=1", "seeed is not a key; did you mean seed?"),
        ("train_loader.datset={}", "train_loader.datset is not a key; did you mean dataset?"),
        ("train_loader.dataset.shufle=true", "train_loader.dataset.shufle is not a key; did you mean shuffle?"),
        ("model.ffn_config.top_k=2", "model.ffn_config.top_k is not a key; did you mean moe_top_k?"),
        (
            "optimizer.param_groups=[{match: [a], lrr: 1}]",
            "optimizer.param_groups[0].lrr is not a key; did you mean lr?",
        ),
        (
            "train_loader.max_seq_len=9",
            "train_loader.max_seq_len is not a key here; the right key is train_loader.dataset.max_seq_len",
        ),
        ("optimizer.t_warmup=1ba", "optimizer.t_warmup is not a key here; the right key is scheduler.t_warmup"),
        (
            "tokenizer.colour=red",
            "tokenizer.colour is not a key; the keys in tokenizer are name, kwargs, chat_template_drops, chat_date",
        ),
        ("colour=red", "colour is not a key of any section"),
    ],
)
def test_unknown_key(tmp_path, override, message):
    assert refusal(tmp_path, override) == f"small.yaml: {message}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1.5", "seed is 1.5, but it must be an integer"),
        ("seed=true", "seed is true, but it must be an integer"),
        ("optimizer.lr=high", "optimizer.lr is 'high', but it must be a finite number"),
        ("optimizer.lr=.nan", "optimizer.lr is nan, but it must be a finite number"),
        ("autoresume=1", "autoresume is 1, but it must be true or false"),
        ("run_name=7", "run_name is 7, but it must be a string: write '7' in quotes"),
        ("max_duration=1.5", "max_duration is 1.5, but it must be a string: a number and its unit, such as 1.5ba"),
        ("max_duration=true", "max_duration is true, but it must be a string: a number and its unit, such as 10ba"),
        (
            "callbacks.generate={prompts: [a], interval: 10}",
            "callbacks.generate.interval is 10, but it must be a string: a number and its unit, such as 10ba",
        ),
        (
            "train_loader.dataset.packing=null",
            "train_loader.dataset.packing is null, but it must be best_fit or none; did you mean none?",
        ),
        ("precision=fp23", "precision is 'fp23', but it must be fp32 or amp_bf16; did you mean fp32?"),
        ("optimizer.betas=0.9", "optimizer.betas is 0.9, but it must be a list of numbers"),
        ("optimizer.betas=[a, 1]", "optimizer.betas[0] is 'a', but it must be a finite number"),
        ("model=3", "model is 3, but it must be a mapping"),
        ("load_path=[1]", "load_path is [1], but it must be a string"),
        (
            "fsdp_config.activation_checkpointing=2",
            "fsdp_config.activation_checkpointing is 2, but it must be true or false or none or block or selective",
        ),
        ("model.preset=132", f"model.preset is 132, but {NAMES}; did you mean 132b?"),
        ("model.preset=huge", f"model.preset is 'huge', but {NAMES}"),
    ],
)
def test_wrong_value(tmp_path, override, message):
    assert refusal(tmp_path, override) == f"small.yaml: {message}"


def test_a_value_that_matches_no_member_of_a_union_is_refused(tmp_path):
    streams = "train_loader.dataset={streams: {a: {hf_name: json}}, max_seq_len: 64}"
    message = refusal(tmp_path, streams, "train_loader.stages=[{name: a, duration: 1, proportions: {a: 1}}]")
    assert message == (
        "small.yaml: train_loader.stages[0].duration is 1, but it must be a string or a mapping: a number and "
        "its unit, such as 1ba"
    )


@pytest.mark.parametrize("key", ["stages.0.duration", "stages[0].duration"])
def test_an_item_of_a_list_can_be_overridden(tmp_path, key):
    streams = "train_loader.dataset={streams: {a: {hf_name: json}}, max_seq_len: 64}"
    stages = "train_loader.stages=[{name: a, duration: 1ba, proportions: {a: 1}}]"
    message = refusal(tmp_path, streams, stages, f"train_loader.{key}=7")
    assert "train_loader.stages[0].duration is 7, but it must be a string or a mapping" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.ffn_config.moe_top_k=17", "model.ffn_config.moe_top_k is 17, but there are only 16 experts"),
        ("model.d_model=66", "model.d_model is 66, but it must be divisible by n_heads (4)"),
        (
            "model.attn_config.kv_n_heads=3",
            "model.n_heads is 4, but it must be divisible by attn_config.kv_n_heads (3)",
        ),
        ("optimizer.lr=-1", "optimizer.lr is -1.0, but it must be above 0"),
        (
            "max_seq_len=1024",
            "max_seq_len is 1024, but model.max_seq_len is only 512: lower max_seq_len or raise model.max_seq_len",
        ),
        ("autoresume=true", "autoresume is true, but there is no save_folder to resume from"),
    ],
)
def test_invalid_values_are_reported_with_their_path(tmp_path, override, message):
    assert refusal(tmp_path, override) == f"small.yaml: {message}"


def test_all_problems_are_reported_together(tmp_path):
    message = refusal(
        tmp_path, "seeed=1", "model.ffn_config.moe_top_k=17", "model.ffn_config.top_k=1", "optimizer=null"
    )
    assert message.splitlines() == [
        "small.yaml: 4 problems",
        "  small.yaml: seeed is not a key; did you mean seed?",
        "  small.yaml: model.ffn_config.moe_top_k is 17, but there are only 16 experts",
        "  small.yaml: model.ffn_config.top_k is not a key; did you mean moe_top_k?",
        "  missing: optimizer.name, optimizer.lr",
    ]


def test_all_missing_keys_are_reported_together(tmp_path):
    message = refusal(tmp_path, text="seed: 1\noptimizer: {lr: '???'}\n")
    assert message == (
        "small.yaml: missing: max_seq_len, model, tokenizer.name, train_loader.name, "
        "train_loader.dataset.max_seq_len, optimizer.name, optimizer.lr, scheduler.name, max_duration, "
        "global_train_batch_size"
    )


@pytest.mark.parametrize(
    "where", ["run_name=${oc.env:HOME}", "run_name=a-${ oc.env:HOME,x}", "run_name=${oc.decode:x}"]
)
def test_resolvers_are_refused_and_the_message_suggests_a_fix(tmp_path, where):
    message = refusal(tmp_path, where)
    assert "but only references to other keys are resolved" in message
    assert "pass run_name=$VAR on the command line" in message


def test_every_unclosed_reference_is_named(tmp_path):
    text = LEAST.replace("'${max_seq_len}'", "'${max_seq_len'") + "load_path: 'a${b.c'\n"
    first, *problems = refusal(tmp_path, text=text).splitlines()
    assert first == "small.yaml: 2 problems"
    assert "train_loader.dataset.max_seq_len is '${max_seq_len', in which ${ does not begin" in problems[0]
    assert problems[1].startswith("  small.yaml: load_path is 'a${b.c', in which ${ does not begin")
    assert load(tmp_path, text=LEAST + "load_path: 'a\\${b'\n").load_path == "a${b"


VARIABLES = LEAST.replace("max_seq_len: 64", "variables: {len: 64, lr: 1e-2, data: {split: train}}\nmax_seq_len: 64", 1)


def test_variables_are_values_to_refer_to(tmp_path):
    used = ("max_seq_len=${variables.len}", "optimizer.lr=${variables.lr}")
    split = "train_loader.dataset.split=${variables.data.split}"
    config = load(tmp_path, *used, split, "variables.lr=0.1", text=VARIABLES)
    assert (config.max_seq_len, config.optimizer.lr, config.train_loader.dataset.split) == (64, 0.1, "train")
    assert "variables" not in to_yaml(config)
    relative = "train_loader.dataset.split=${...variables.data.split}"
    assert load(tmp_path, *used, relative, "variables.lr=0.1", text=VARIABLES) == config


def test_an_unused_variable_is_reported(tmp_path):
    message = refusal(tmp_path, "max_seq_len=${variables.len}", "seeed=3", text=VARIABLES).splitlines()
    assert message[0] == "small.yaml: 3 problems"
    assert message[1] == "  small.yaml: variables.lr is never used: refer to it as ${variables.lr}, or remove it"
    assert "variables.data is never used" in message[2]
    assert "variables is 3, but it must be a mapping" in refusal(tmp_path, "variables=3")
    assert load(tmp_path, "variables=null") == load(tmp_path)


def test_a_reference_to_a_variable_needs_its_section(tmp_path):
    message = refusal(tmp_path, "seed=${len}", text=VARIABLES.replace(", lr: 1e-2, data: {split: train}", ""))
    assert message == "small.yaml: seed is '${len}', but there is no key 'len'; use ${variables.len}"


def test_unresolved_references_are_reported(tmp_path):
    assert "run_name is '${nope}', but there is no key 'nope'" in refusal(tmp_path, "run_name=${nope}")
    assert "Recursive interpolation" in refusal(tmp_path, "run_name=${save_folder}", "save_folder=${run_name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "small.yaml is empty"),
        ("# nothing\n", "small.yaml is empty"),
        ("- a\n", "small.yaml contains a list, but a config must be a mapping"),
        ("just words\n", "small.yaml contains text, but a config must be a mapping"),
        ("a: 1\na: 2\n", "small.yaml:2: duplicate key a"),
        ("model:\n  n_heads: 1\n  n_layers: 2\n  n_heads: 3\n", "small.yaml:4: duplicate key n_heads"),
        ("a: 1\nb: [1\n", "small.yaml:3: not valid YAML: "),
        ("a:\n\t- 1\n", "small.yaml:2: not valid YAML: a tab in column 1: use spaces"),
        ("a: b: 1\n", "small.yaml:1: not valid YAML: mapping values are not allowed here: check the indentation"),
        ("a: \x00\n", "small.yaml: not valid YAML: "),
        ("null: 1\n", "small.yaml: the keys of a config must be strings"),
    ],
)
def test_files_that_are_not_a_config_are_refused(tmp_path, text, message):
    assert placed_refusal(tmp_path, text=text).startswith(message)


def test_missing_and_unreadable_files_are_refused(tmp_path):
    (tmp_path / "dbrx_tiny.yaml").write_text(LEAST)
    with pytest.raises(ConfigError, match=r"dbrx_tin.yaml does not exist; did you mean .*dbrx_tiny.yaml\?"):
        read_config(str(tmp_path / "dbrx_tin.yaml"))
    with pytest.raises(ConfigError, match=r"is a folder, not a YAML file; the YAML files in .* are: dbrx_tiny.yaml"):
        read_config(str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        read_config(str(tmp_path / "latin.yaml"))


def test_to_yaml_is_read_back_unchanged(tmp_path):
    hard = ["run_name='1e-5'", "save_folder='a/{run_name}: x'", "optimizer.param_groups=[{match: ['*'], lr: 1e-7}]"]
    callbacks = "callbacks={lr_monitor: {}, speed_monitor: {window_size: 3}}"
    config = load(tmp_path, *hard, callbacks, "train_loader.dataset.preprocessing_fn={prompt: 'on', response: '???x'}")
    assert load(tmp_path, text=to_yaml(config)) == config


def test_printed_config_hides_secrets(tmp_path):
    url = "https://ann:pa55@host/x?part=1&access_token=pa55&X-Amz-Signature=pa55"
    columns = "train_loader.dataset.preprocessing_fn={prompt: a, response: b}"
    config = load(tmp_path, f"load_path='{url}'", columns, "loggers.wandb={name: s3://bucket/x}")
    printed = masked_yaml(config)
    assert "pa55" not in printed
    assert "https://***@host/x?part=1&access_token=***" in printed
    assert "s3://bucket/x" in printed


def test_a_saved_config_has_no_secrets_and_can_be_read_back(tmp_path):
    hf = "hf_" + "Ab12" * 8
    config = load(
        tmp_path,
        "train_loader.dataset={streams: {a: {remote: 's3://key:word@bucket/x'}}, max_seq_len: 64}",
        f"loggers.wandb={{tags: [ok, {hf}], group: 'password=pa55'}}",
    )
    saved = to_yaml(config)
    assert saved.splitlines()[1:4] == [
        "#   train_loader.dataset.streams.a.remote: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "#   loggers.wandb.group: no variable exists, so pass the value on the command line",
        "#   loggers.wandb.tags[1]: HF_TOKEN",
    ]
    assert not {text for text in ("key:word", hf, "pa55", "***") if text in saved}
    again = load(tmp_path, text=saved)
    assert again.train_loader.dataset.each_stream()["a"].remote == "s3://bucket/x"
    assert again.loggers.wandb is not None
    assert again.loggers.wandb.tags == ["ok", "hf_"]
    assert to_yaml(again) == "".join(line for line in saved.splitlines(True) if not line.startswith("#"))


def test_a_key_that_names_a_secret_is_saved_as_null():
    @dataclass(frozen=True, kw_only=True)
    class Login(Section):
        name: str
        hf_token: str | None
        eos_token: str

    login = Login(name="ann", hf_token="abc", eos_token="</s>")
    assert saved_yaml(login).endswith(":\n#   hf_token: HF_TOKEN\nname: ann\nhf_token: null\neos_token: </s>\n")
    assert masked_yaml(login) == "name: ann\nhf_token: '***'\neos_token: </s>\n"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("run_name={hf}", "run_name"),
        ("train_loader.dataset={{streams: {{{hf}: {{hf_name: a}}}}, max_seq_len: 64}}", "train_loader.dataset.streams"),
        ("train_loader.stages=[{{name: {hf}, proportions: {{a: 1}}}}]", "train_loader.stages"),
    ],
)
def test_a_name_with_a_secret_is_refused(tmp_path, override, key):
    message = refusal(tmp_path, override.format(hf="hf_" + "Ab12" * 8))
    assert f"small.yaml: {key} has the name 'hf_***', which seems to contain a secret" in message


def test_vocabulary_must_fit(tmp_path):
    check_vocab(load(tmp_path), 512)
    with pytest.raises(
        ConfigError, match=r"model.vocab_size is 512, but the tokenizer has 513 tokens: set it to at least 576"
    ):
        check_vocab(load(tmp_path), 513)


TEN_INVALID_KEYS = """\
max_seq_lenn: 64
model:
  preset: tiny
  n_heads: 5
  ffn_config: {moe_top_k: 17}
tokenizer: {name: tiktoken}
train_loader:
  name: finetuning
  num_workers: -1
  dataset: &dataset
    hf_name: json
    max_seq_len: ${max_seq_len}
    shufle: true
    on_bad_example: ignore
eval_loader:
  name: finetuning
  dataset: {<<: *dataset, split: 'test[:'}
optimizer: {name: adamw, lr: -1}
scheduler: {name: constant_with_warmup, t_warmup: 1dur, alpha_f: 2}
max_duration: 1dur
global_train_batch_size: many
seed: -1
"""


def test_everything_is_reported_in_the_order_of_the_file_with_its_line(tmp_path):
    first, *problems = placed_refusal(tmp_path, "autoresume=true", text=TEN_INVALID_KEYS).splitlines()
    assert first == f"small.yaml: {len(problems)} problems"
    assert [line.partition(" is ")[0].partition(" requires ")[0].strip() for line in problems] == [
        "small.yaml:1: max_seq_lenn",
        "small.yaml: model.d_model",  # set by the preset
        "small.yaml:4: model.n_heads",
        "small.yaml:5: model.ffn_config.moe_top_k",
        "small.yaml: tokenizer.kwargs",
        "small.yaml:9: train_loader.num_workers",
        "small.yaml:13: train_loader.dataset.shufle",
        "small.yaml:13: eval_loader.dataset.shufle",
        "small.yaml:14: train_loader.dataset.on_bad_example",
        "small.yaml:14: eval_loader.dataset.on_bad_example",
        "small.yaml:17: eval_loader.dataset.split",
        "small.yaml:18: optimizer.lr",
        "small.yaml:19: scheduler.alpha_f",
        "small.yaml:20: max_duration",
        "small.yaml:21: global_train_batch_size",
        "small.yaml:22: seed",
        "command line: autoresume",
    ]


def test_references_to_a_misspelt_key_are_not_reported(tmp_path):
    message = placed_refusal(tmp_path, text=LEAST.replace("max_seq_len: 64", "max_seq_lenn: 64", 1))
    assert message == "small.yaml:1: max_seq_lenn is not a key; did you mean max_seq_len?"


def test_a_rule_is_skipped_if_a_value_that_it_reads_is_invalid(tmp_path):
    message = refusal(tmp_path, "model.ffn_config.moe_num_experts=few", "model.ffn_config.moe_top_k=17")
    assert message == "small.yaml: model.ffn_config.moe_num_experts is 'few', but it must be an integer"


def test_no_network_is_needed_before_resolve_pretrained(tmp_path, monkeypatch):
    asked, values = [], {"n_layers": 2, "max_seq_len": 128}
    monkeypatch.setattr("train.config.load.read_values", lambda name: asked.append(name) or (values, ""))
    path = tmp_path / "small.yaml"
    path.write_text(LEAST.replace("max_seq_len: 64", "max_seq_len: ${model.max_seq_len}"))
    loaded = load_config(str(path), ["model={pretrained_model_name_or_path: some/model, n_layers: 2}"])
    assert asked == []
    assert loaded.config.model.n_layers == 2
    with pytest.raises(Unavailable):
        _ = loaded.config.model.d_model
    with pytest.raises(Unavailable):
        _ = loaded.config.max_seq_len
    message = placed_refusal(tmp_path, "model={pretrained_model_name_or_path: some/model}", "seed=-1")
    assert message.startswith("command line: seed is -1")
    assert asked == []
    assert resolve_pretrained(loaded).train_loader.dataset.max_seq_len == 128
    assert asked == ["some/model"]


ODD_VALUES = [
    None,
    True,
    3,
    -1,
    2.5,
    "x",
    "",
    "???",
    "${max_seq_len}",
    "${nope.x}",
    [],
    [1],
    ["a", {}],
    {},
    {"a": None},
]


@pytest.mark.parametrize("seed", range(20))
def test_no_value_of_any_key_ends_in_a_traceback(tmp_path, seed):
    random = Random(seed)
    paths = list(known_paths(TrainConfig))
    tree = yaml.safe_load(LEAST)
    for path in random.sample(paths, 12):
        node = tree
        *above, last = path.replace("[0]", "").split(".")
        for part in above:
            node[part] = node[part] if isinstance(node.get(part), dict) else {}
            node = node[part]
        node[last] = random.choice(ODD_VALUES)
    with suppress(ConfigError):
        load(tmp_path, text=yaml.safe_dump(tree))


def problems(folder, *overrides, text=LEAST):
    """The problems of a config, each beginning with its key."""
    lines = refusal(folder, *overrides, text=text).splitlines()
    return [line.strip().removeprefix("small.yaml: ") for line in (lines[1:] if len(lines) > 1 else lines)]


def keys_of(folder, *overrides, text=LEAST):
    return [line.split()[0] for line in problems(folder, *overrides, text=text)]


def test_a_model_by_reference_has_the_values_of_its_preset(tmp_path):
    model = load(tmp_path, "variables={m: {preset: tiny, n_layers: 3}}", "model=${variables.m}").model
    assert (model.d_model, model.n_layers) == (64, 3)
    attn = load(tmp_path, "variables={a: {clip_qkv: 1.0}}", "model.attn_config=${variables.a}").model.attn_config
    assert (attn.clip_qkv, attn.kv_n_heads) == (1.0, 2)


@pytest.mark.parametrize(
    "section", ["{text: a.txt, hf_kwargs: {}, max_seq_len: 64}", "{local: a, hf_kwargs: null, max_seq_len: 64}"]
)
def test_a_valid_section_has_no_problems_beside_an_invalid_key(tmp_path, section):
    assert keys_of(tmp_path, f"train_loader.dataset={section}", "seeed=1") == ["seeed"]


@pytest.mark.parametrize("model", ["{preset: tinny, d_model: 64}", "{presett: tiny, d_model: 64}"])
def test_values_of_a_misspelt_preset_are_not_checked(tmp_path, model):
    assert len(problems(tmp_path, f"model={model}", "max_seq_len=40000")) == 1


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["seeed=???"], ["seeed"]),
        (["fsdp_config.limit_all_gathers=${nope}"], ["fsdp_config.limit_all_gathers"]),
        (["foo=${nope}"], ["foo"]),
        (["run_name=!!binary aGk="], ["run_name"]),
        (["\udcff=1"], ["has"]),
        (["optimiser={name: adamw, lr: 1}", "optimizer=null"], ["optimiser"]),
        (["train_loader.dataset={hf_name: json}", "train_loader.max_seq_len=64"], ["train_loader.max_seq_len"]),
        (["variabels={n: 64}", "max_seq_len=${variables.n}"], ["variabels"]),
        (["max_seq_len=${nope}"], ["max_seq_len"]),  # the keys that refer to it are not reported
        (["eval_loader=${train_loader}", "train_loader.num_workers=${nope}"], ["train_loader.num_workers"]),
        (["run_name=${nope}", "variables.w=3"], ["run_name", "variables.w"]),
        (["seed=-1", "model.d_modell=3", "foo=1"], ["seed", "model.d_modell", "foo"]),
        (["foo", "a..b=1"], ["'foo'", "'a..b=1'"]),
        (
            ["train_loader.dataset={streams: {a: 3, b: {hf_name: json, split: 'x['}}, max_seq_len: 64}"],
            ["train_loader.dataset.streams.a", "train_loader.dataset.streams.b.split"],
        ),
        (
            ["optimizer.param_groups=[3, {match: [a], lr: -1}]"],
            ["optimizer.param_groups[0]", "optimizer.param_groups[1].lr"],
        ),
        (
            ["train_loader.dataset.hf_kwargs={data_dir: 3, data_files: 'hf://a/b'}"],
            ["train_loader.dataset.hf_kwargs.data_dir", "train_loader.dataset.hf_kwargs.data_files"],
        ),
        (
            ["train_loader.dataset.max_seq_len=x", "eval_loader={name: text, dataset: {text: a, max_seq_len: 8}}"],
            ["train_loader.dataset.max_seq_len", "eval_loader.dataset.max_seq_len"],
        ),
    ],
)
def test_each_problem_is_reported_once(tmp_path, overrides, keys):
    assert keys_of(tmp_path, *overrides) == keys


@pytest.mark.parametrize("reference", ["${...max_seq_len}", "a${max_seq_len}", "${max_seq_len}"])
def test_each_kind_of_reference_to_a_misspelt_key_is_not_reported(tmp_path, reference):
    text = LEAST.replace("max_seq_len: 64", "max_seq_lenn: 64", 1).replace("'${max_seq_len}'", f"'{reference}'")
    assert keys_of(tmp_path, text=text) == ["max_seq_lenn"]


def test_circular_references_are_reported(tmp_path):
    assert keys_of(tmp_path, "run_name=${save_folder}", "save_folder=${run_name}") == ["run_name", "save_folder"]
    circle = ["model.attn_config=${train_loader}", "train_loader.dataset.hf_kwargs=${model}"]
    assert "cannot be resolved" in refusal(tmp_path, *circle)


@pytest.mark.parametrize("override", [f"max_duration={'9' * 400}ba", f"seed={'9' * 5000}", f"run_name={'[' * 2000}"])
def test_the_message_for_a_very_long_value_is_short(tmp_path, override):
    assert len(refusal(tmp_path, override)) < 1000


def test_a_stream_can_be_called_by_a_number(tmp_path):
    streams = "train_loader.dataset={streams: {2023: {hf_name: json}}, max_seq_len: 64}"
    config = load(tmp_path, streams, "train_loader.dataset.streams.2023.choose=5")
    assert config.train_loader.dataset.streams["2023"].choose == 5


def test_text_with_an_escaped_reference_is_written_and_read_back(tmp_path):
    config = load(tmp_path, r"load_path='a\${seed}'")
    assert config.load_path == "a${seed}"
    assert load(tmp_path, text=to_yaml(config)) == config
    assert "a\\${seed}" in masked_yaml(config)


def test_a_default_cannot_be_referred_to(tmp_path):
    message = refusal(tmp_path, "device_eval_batch_size=${device_train_microbatch_size}")
    assert message.endswith("a reference cannot use a default: set 'device_train_microbatch_size'")


def test_a_missing_relative_path_is_reported_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, expected in (("a.yaml", f" (relative to the working directory, {tmp_path})"), ("/no/a.yaml", "")):
        with pytest.raises(ConfigError) as error:
            read_config(path)
        assert str(error.value) == f"{path} does not exist{expected}"
        with pytest.raises(ConfigError) as error, os_errors_named("it"):
            Path(path).read_text()
        assert str(error.value) == f"it cannot be read: No such file or directory{expected}"

"""Hints for keys of LLM Foundry that do not exist in Dropless.

RULES has the hints for keys that exist only in LLM Foundry. VALUES has the hints for keys that exist in both
frameworks, but with values that only LLM Foundry accepts. LLM_FOUNDRY lists the leaf keys of LLM Foundry's
dbrx-full-ft.yaml with their values. `table` uses all three to create the table in docs/llm-foundry.md.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import yaml

from data.config.suggest import show


@dataclass(frozen=True, kw_only=True)
class Rule:
    accepts: tuple[object, ...] = ()
    """Values that describe what Dropless always does. With one of these values, the key is ignored; all other values
    are rejected."""
    hint: str
    """A description of what Dropless always does, or of what to write instead."""


def _fsdp1(*keys: str) -> dict[str, Rule]:
    rule = Rule(hint="a setting of FSDP1, which FSDP2 does not have: remove the key")
    return {f"fsdp_config.{key}": rule for key in keys}


def _streaming(*keys: str) -> dict[str, Rule]:
    rule = Rule(
        hint="a setting for shuffling, downloads or checks in Streaming. In Dropless, the order of rows does not "
        "depend on the number of nodes, and the hash of every shard is checked: remove the key"
    )
    return {f"*_loader.dataset.{key}": rule for key in keys} | {
        f"*_loader.dataset.streams.*.{key}": rule for key in keys
    }


RULES: dict[str, Rule] = {
    "icl_seq_len": Rule(
        hint="in-context learning tasks are not supported; use eval_loader to measure loss and perplexity"
    ),
    "icl_tasks*": Rule(
        hint="in-context learning tasks are not supported; use eval_loader to measure loss and perplexity"
    ),
    "*.trust_remote_code": Rule(accepts=(False,), hint="code from the hub is never executed: remove the key"),
    "*.use_auth_token": Rule(hint="remove the key, because the token is only read from HF_TOKEN in the environment"),
    "global_seed": Rule(
        hint="use seed, or define global_seed under variables and refer to it as ${variables.global_seed}"
    ),
    "expandable_segments": Rule(
        accepts=(False,), hint="set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment"
    ),
    "eval_gauntlet*": Rule(
        hint="in-context learning tasks are not supported; use eval_loader to measure loss and perplexity"
    ),
    "icl_max_seq_len": Rule(
        hint="in-context learning tasks are not supported; use eval_loader to measure loss and perplexity"
    ),
    "model.expansion_ratio": Rule(hint="use ffn_config.ffn_hidden_size, the hidden size of one expert"),
    "model.loss_fn": Rule(hint="the loss is always cross-entropy: remove the key"),
    "model.attn_config.attn_uses_sequence_id": Rule(
        accepts=(True,), hint="attention never crosses document boundaries: remove the key"
    ),
    "model.ffn_config.ffn_type": Rule(
        accepts=("mb_dmoe",), hint="every layer has dropless experts; moe_impl sets the implementation"
    ),
    "model.ffn_config.moe_lbl_in_fp32": Rule(accepts=(True,), hint="router losses are always computed in fp32"),
    "model.ffn_config.mlp_impl": Rule(hint="use `moe_impl: megablocks`, or auto"),
    "model.ffn_config.memory_optimized_mlp": Rule(accepts=(False,), hint="use moe_recompute"),
    "model.pretrained": Rule(
        accepts=(True,),
        hint="weights are loaded if pretrained_model_name_or_path is set; otherwise they are initialized randomly",
    ),
    "model.peft_config*": Rule(
        hint="use the top-level key lora: {r, alpha, dropout, target_modules}; target_modules may include experts"
    ),
    "model.init_device": Rule(
        accepts=("mixed", "meta"),
        hint="every rank builds the model on the meta device and initializes only its own shards",
    ),
    "model.config_overrides": Rule(
        accepts=({}, None), hint="write these keys directly under model, such as model.n_layers"
    ),
    "model.use_flash_attention_2": Rule(
        hint="use `attn_config: {attn_impl: auto}`, which uses flash-attn if it is installed, or `attn_impl: flash`"
    ),
    "model.attn_implementation": Rule(hint="use `attn_config: {attn_impl: ...}`: auto, sdpa, flex or flash"),
    "*_loader.dataset.decoder_only_format": Rule(accepts=(True,), hint="prompt and response always form one sequence"),
    "*_loader.dataset.allow_pad_trimming": Rule(accepts=(False,), hint="rows always have max_seq_len positions"),
    "train_loader.dataset.packing_ratio": Rule(
        accepts=("auto",),
        hint="rows are packed as tightly as possible; use `packing: none` to disable packing",
    ),
    "eval_loader.dataset.packing_ratio": Rule(
        accepts=("auto", None),
        hint="packing does not change the loss, because documents in a row cannot attend to each other; use "
        "`packing: none` to disable packing",
    ),
    "*_loader.dataset.seq_parallel_replication": Rule(
        accepts=(1, None), hint="rows are not split across ranks: remove the key"
    ),
    "*_loader.dataset.tokenizer": Rule(hint="there is only one tokenizer, set at the top level"),
    "*_loader.dataset.max_seq_length": Rule(hint="use max_seq_len"),
    **_streaming(
        "num_canonical_nodes",
        "predownload",
        "partition_algo",
        "shuffle_algo",
        "shuffle_block_size",
        "batching_method",
        "sampling_method",
        "sampling_granularity",
        "batch_size",
        "epoch_size",
        "replication",
        "keep_zip",
        "download_retry",
        "download_timeout",
        "validate_hash",
        "allow_unsafe_types",
    ),
    "*_loader.dataset.eos_token_id": Rule(hint="the tokenizer defines the end-of-text token: remove the key"),
    "*_loader.timeout": Rule(
        accepts=(0,), hint="there is a built-in time limit for workers that produce no batch: remove the key"
    ),
    "train_loader.drop_last": Rule(
        accepts=(True,),
        hint="every batch is full: rows left over at the end of an epoch are used at the start of the next epoch",
    ),
    "eval_loader.drop_last": Rule(accepts=(False,), hint="an evaluation includes every row: remove the key"),
    "fsdp_config.limit_all_gathers": Rule(accepts=(True,), hint="FSDP2 always limits all-gathers"),
    "fsdp_config.activation_checkpointing_reentrant": Rule(
        accepts=(False,), hint="activation checkpointing is always non-reentrant"
    ),
    "fsdp_config.data_parallel_shard_degree": Rule(
        accepts=(-1,), hint="the degree is always the number of ranks divided by data_parallel_replicate_degree"
    ),
    "fsdp_config.load_monolith_rank0_only": Rule(
        accepts=(False,), hint="every rank reads its own shards of a checkpoint: remove the key"
    ),
    **_fsdp1(
        *("auto_wrap", "backward_prefetch", "backward_prefetch_limit", "cpu_offload", "flatten_parameters"),
        *("forward_prefetch", "forward_prefetch_limit", "ignored_modules", "keep_mixed_precision_grads"),
        *("load_fsdp_monolith_rank0_only", "load_planner", "min_params", "process_group", "save_planner"),
        *("sharded_ckpt_prefix_dir", "sync_module_states", "te_*", "use_orig_params", "verbose"),
    ),
    "callbacks.hf_checkpointer.overwrite": Rule(
        accepts=(True,), hint="if the run was restarted, an existing export of the same batch is always replaced"
    ),
    "callbacks.generate_callback": Rule(hint="use `generate: {prompts: [...], interval: ..., max_new_tokens: ...}`"),
}

VALUES: dict[str, dict[object, str]] = {
    "model.name": {
        "hf_causal_lm": "use `name: dbrx` with a preset, or with dimensions such as d_model and n_layers",
        "mpt_causal_lm": "use `name: dbrx` with a preset, or with dimensions such as d_model and n_layers",
    },
    "model.attn_config.attn_impl": {"torch": "use sdpa", "triton": "use auto"},
    "fsdp_config.sharding_strategy": {
        "SHARD_GRAD_OP": "use FULL_SHARD with reshard_after_forward: false",
        "NO_SHARD": "use `fsdp_config: null`, which replicates the model on every rank",
    },
    "fsdp_config.state_dict_type": {"local": "use sharded"},
    "callbacks.hf_checkpointer.precision": {
        "fp32": "use float32",
        "bf16": "use bfloat16",
        "float16": "use bfloat16, the dtype in which DBRX was trained",
    },
    "device_train_microbatch_size": {"auto": "use a number: with FSDP2, the batch size cannot be found automatically"},
    "device_eval_batch_size": {"auto": "use a number: with FSDP2, the batch size cannot be found automatically"},
    "device": {"cuda": "use gpu"},
    "precision": {"bf16": "use amp_bf16", "amp_fp16": "use amp_bf16"},
}

EPOCHS = (
    *("max_duration", "eval_interval", "save_interval", "console_log_interval"),
    "callbacks.hf_checkpointer.save_interval",
)
"""Keys of durations for which LLM Foundry also accepts a plain number, which means epochs."""


def rule_for(path: str) -> Rule | None:
    """Return the rule for a key that does not exist in Dropless, or None."""
    return next((rule for pattern, rule in RULES.items() if fnmatchcase(path, pattern)), None)


def accepted(rule: Rule, value: object) -> bool:
    # 1 == True in Python, but not in YAML.
    return any(type(value) is type(each) and value == each for each in rule.accepts)


def instead_of_key(path: str, value: object) -> str | None:
    """Return the message for a key of LLM Foundry that does not exist in Dropless, or None for other keys."""
    rule = rule_for(path)
    if rule is None:
        return None
    return (
        f"is {show(value)}, which is not supported: {rule.hint}" if rule.accepts else f"is not supported: {rule.hint}"
    )


def instead_of(path: str, value: object) -> str | None:
    """Return what to write instead of a value that only LLM Foundry accepts, for a key that also exists in Dropless.
    Return None for other values."""
    if path in EPOCHS and isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return (
            f"a plain number means epochs in Composer and LLM Foundry; in Dropless, write {value}ep, or {value}ba for "
            "batches"
        )
    return VALUES.get(path, {}).get(value) if isinstance(value, str) else None


def _loader(split: str, shuffle: bool, packing_ratio: str | None, **more: Any) -> dict[str, Any]:
    dataset = {
        "split": split,
        "hf_name": "mosaicml/dolly_hhrlhf",
        "shuffle": shuffle,
        "max_seq_len": "${max_seq_len}",
        **more,
        "packing_ratio": packing_ratio,
        "allow_pad_trimming": False,
        "decoder_only_format": True,
    }
    loader = {
        "drop_last": True,
        "pin_memory": True,
        "num_workers": 8,
        "prefetch_factor": 2,
        "persistent_workers": True,
    }
    return {"name": "finetuning"} | {f"dataset.{key}": value for key, value in dataset.items()} | loader


LLM_FOUNDRY: dict[str, Any] = {
    "max_seq_len": 4096,
    "icl_seq_len": 1024,
    "run_name": None,
    "model.name": "hf_causal_lm",
    "model.pretrained": True,
    "model.init_device": "mixed",
    "model.use_auth_token": True,
    "model.config_overrides": {},
    "model.use_flash_attention_2": True,
    "model.pretrained_model_name_or_path": "databricks/dbrx-instruct",
    "tokenizer.name": "databricks/dbrx-instruct",
    "tokenizer.kwargs.model_max_length": "${max_seq_len}",
    "tokenizer.kwargs.trust_remote_code": True,
    **{f"train_loader.{key}": value for key, value in _loader("train", True, "auto", eos_token_id=0).items()},
    **{f"eval_loader.{key}": value for key, value in _loader("test", False, None).items()},
    "optimizer.lr": 1e-6,
    "optimizer.name": "decoupled_lionw",
    "optimizer.betas": [0.9, 0.95],
    "optimizer.weight_decay": 1e-6,
    "scheduler.name": "cosine_with_warmup",
    "scheduler.alpha_f": 0,
    "scheduler.t_warmup": "0.02dur",
    "algorithms.gradient_clipping.clipping_type": "norm",
    "algorithms.gradient_clipping.clipping_threshold": 1,
    "max_duration": "2ep",
    "eval_interval": "1ep",
    "global_train_batch_size": 64,
    "eval_first": False,
    "eval_subset_num_batches": -1,
    "seed": 17,
    "device_train_microbatch_size": 1,
    "device_eval_batch_size": 1,
    "precision": "amp_bf16",
    "autoresume": True,
    "dist_timeout": 3600,
    "fsdp_config.mixed_precision": "PURE",
    "fsdp_config.state_dict_type": "sharded",
    "fsdp_config.limit_all_gathers": True,
    "fsdp_config.sharding_strategy": "FULL_SHARD",
    "fsdp_config.activation_cpu_offload": False,
    "fsdp_config.activation_checkpointing": True,
    "fsdp_config.activation_checkpointing_reentrant": False,
    "progress_bar": False,
    "log_to_console": True,
    "console_log_interval": "1ba",
    "callbacks.lr_monitor": {},
    "callbacks.speed_monitor.window_size": 1,
    "callbacks.memory_monitor": {},
    "callbacks.hf_checkpointer.overwrite": True,
    "callbacks.hf_checkpointer.precision": "bfloat16",
    "callbacks.hf_checkpointer.save_folder": "./{run_name}/checkpoints",
    "callbacks.hf_checkpointer.save_interval": "1dur",
    "callbacks.runtime_estimator": {},
    # The keys below are commented out in LLM Foundry's file.
    "save_interval": "5000ba",
    "save_num_checkpoints_to_keep": 1,
    "save_folder": "./{run_name}/checkpoints",
    "loggers.wandb.name": None,
    "loggers.wandb.group": None,
    "loggers.mlflow.tracking_uri": None,
    "loggers.mlflow.experiment_name": None,
}
"""The leaf keys of LLM Foundry's scripts/train/yamls/finetune/dbrx-full-ft.yaml with their values."""

REMARKS: dict[str, str] = {
    "run_name": "with `null`, the name is read from `$RUN_NAME`, as in LLM Foundry",
    "tokenizer.name": "a Hugging Face tokenizer, or `tiktoken` with `kwargs.model_name: gpt-4` for DBRX's tokenizer",
    "train_loader.dataset.hf_name": "a hub dataset, a path, or `json`, `csv` or `parquet` with `hf_kwargs`",
    "eval_loader.dataset.hf_name": "a hub dataset, a path, or `json`, `csv` or `parquet` with `hf_kwargs`",
    "tokenizer.kwargs.model_max_length": "must equal `max_seq_len`",
    "save_folder": "`{run_name}` is replaced by the name of the run, as in LLM Foundry",
}
"""Notes on supported keys in the table of docs/llm-foundry.md."""


def verdict(key: str) -> tuple[str, str]:
    """Return (status, note). The status is `supported`, `ignored` (Dropless always behaves this way) or `refused`."""
    value = LLM_FOUNDRY[key]
    instead = instead_of(key, value)
    if instead is not None:
        return "refused", instead
    rule = rule_for(key) or rule_for(key.rpartition(".")[0])
    if rule is None:
        return "supported", REMARKS.get(key, "")
    if accepted(rule, value):
        return "ignored", rule.hint
    return "refused", rule.hint


def table() -> str:
    """The Markdown table in docs/llm-foundry.md."""
    lines = [
        "| key | value in LLM Foundry | in Dropless | note |",
        "|---|---|---|---|",
    ]
    for key, value in LLM_FOUNDRY.items():
        shown = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
        status, note = verdict(key)
        lines.append(f"| `{key}` | `{shown}` | {status} | {note} |")
    return "\n".join(lines)

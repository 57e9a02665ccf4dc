"""What is said about keys of LLM Foundry that are not keys here.

RULES speaks of keys this schema lacks, VALUES of values LLM Foundry has for keys that both have. LLM_FOUNDRY lists the
leaf keys of its dbrx-full-ft.yaml and the values there; `table` joins them into the table in docs/llm-foundry.md.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import yaml

from data.config.suggest import show


@dataclass(frozen=True, kw_only=True)
class Rule:
    accepts: tuple[object, ...] = ()
    """Values that say what is done anyway: the reader passes over the key. Every other value is refused."""
    say: str
    """What is done anyway, or what to write instead."""


def _fsdp1(*keys: str) -> dict[str, Rule]:
    rule = Rule(say="a setting of FSDP1, which FSDP2 does without: leave it out")
    return {f"fsdp_config.{key}": rule for key in keys}


def _streaming(*keys: str) -> dict[str, Rule]:
    rule = Rule(
        say="a setting of Streaming's own order, downloads or checks: the order of rows here is planned, is the same "
        "for any number of nodes, and every shard's hash is checked; leave it out"
    )
    return {f"*_loader.dataset.{key}": rule for key in keys} | {
        f"*_loader.dataset.streams.*.{key}": rule for key in keys
    }


RULES: dict[str, Rule] = {
    "icl_seq_len": Rule(say="there are no in-context evaluation tasks; eval_loader gives loss and perplexity"),
    "icl_tasks*": Rule(say="there are no in-context evaluation tasks; eval_loader gives loss and perplexity"),
    "*.trust_remote_code": Rule(accepts=(False,), say="no code from a hub is ever run: leave it out"),
    "*.use_auth_token": Rule(say="a token is taken from HF_TOKEN in the environment, never from a file: leave it out"),
    "global_seed": Rule(say="write seed, or put it under variables: and refer to it as ${variables.global_seed}"),
    "expandable_segments": Rule(
        accepts=(False,), say="set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment"
    ),
    "eval_gauntlet*": Rule(say="there are no in-context evaluation tasks; eval_loader gives loss and perplexity"),
    "icl_max_seq_len": Rule(say="there are no in-context evaluation tasks; eval_loader gives loss and perplexity"),
    "model.expansion_ratio": Rule(say="write ffn_config.ffn_hidden_size, the width of one expert"),
    "model.loss_fn": Rule(say="the loss is always cross-entropy: leave it out"),
    "model.attn_config.attn_uses_sequence_id": Rule(
        accepts=(True,), say="attention never crosses the documents of a row: leave it out"
    ),
    "model.ffn_config.ffn_type": Rule(
        accepts=("mb_dmoe",), say="every layer has dropless experts, and moe_impl says what computes them"
    ),
    "model.ffn_config.moe_lbl_in_fp32": Rule(accepts=(True,), say="router losses are always computed in fp32"),
    "model.ffn_config.mlp_impl": Rule(say="write `moe_impl: megablocks`, or auto"),
    "model.ffn_config.memory_optimized_mlp": Rule(accepts=(False,), say="write moe_recompute"),
    "model.pretrained": Rule(
        accepts=(True,),
        say="weights are taken wherever pretrained_model_name_or_path names them; without it training starts from "
        "fresh ones",
    ),
    "model.peft_config*": Rule(
        say="write the top-level key lora: {r, alpha, dropout, target_modules}, whose target_modules can be experts too"
    ),
    "model.init_device": Rule(accepts=("mixed", "meta"), say="every rank builds on meta and fills its own part"),
    "model.config_overrides": Rule(
        accepts=({}, None), say="the keys are written in model itself, such as model.n_layers"
    ),
    "model.use_flash_attention_2": Rule(
        say="write `attn_config: {attn_impl: auto}` (flash-attn where it is installed), or `flash`"
    ),
    "model.attn_implementation": Rule(say="write `attn_config: {attn_impl: ...}`: auto, sdpa, flex or flash"),
    "*_loader.dataset.decoder_only_format": Rule(accepts=(True,), say="prompt and response are always one sequence"),
    "*_loader.dataset.allow_pad_trimming": Rule(accepts=(False,), say="rows always have max_seq_len positions"),
    "train_loader.dataset.packing_ratio": Rule(
        accepts=("auto",),
        say="the prepared rows are packed as tightly as they go; write `packing: none` for no packing",
    ),
    "eval_loader.dataset.packing_ratio": Rule(
        accepts=("auto", None),
        say="documents in a row do not see one another, so packing leaves the loss as it is; `packing: none` for none",
    ),
    "*_loader.dataset.seq_parallel_replication": Rule(
        accepts=(1, None), say="rows are not cut over ranks: leave it out"
    ),
    "*_loader.dataset.tokenizer": Rule(say="there is one tokenizer, at the top level"),
    "*_loader.dataset.max_seq_length": Rule(say="write max_seq_len"),
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
    "*_loader.dataset.eos_token_id": Rule(say="the end token is the tokenizer's own: leave it out"),
    "*_loader.timeout": Rule(accepts=(0,), say="workers have a limit of their own without a batch: leave it out"),
    "train_loader.drop_last": Rule(
        accepts=(True,), say="every batch is full: rows left at the end of a pass open the next"
    ),
    "eval_loader.drop_last": Rule(accepts=(False,), say="every row of the evaluation counts: leave it out"),
    "fsdp_config.limit_all_gathers": Rule(accepts=(True,), say="FSDP2 always limits them"),
    "fsdp_config.activation_checkpointing_reentrant": Rule(
        accepts=(False,), say="activation checkpointing is always non-reentrant"
    ),
    "fsdp_config.data_parallel_shard_degree": Rule(
        accepts=(-1,), say="it is the number of ranks divided by data_parallel_replicate_degree"
    ),
    "fsdp_config.load_monolith_rank0_only": Rule(
        accepts=(False,), say="every rank reads its own part of a checkpoint: leave it out"
    ),
    **_fsdp1(
        *("auto_wrap", "backward_prefetch", "backward_prefetch_limit", "cpu_offload", "flatten_parameters"),
        *("forward_prefetch", "forward_prefetch_limit", "ignored_modules", "keep_mixed_precision_grads"),
        *("load_fsdp_monolith_rank0_only", "load_planner", "min_params", "process_group", "save_planner"),
        *("sharded_ckpt_prefix_dir", "sync_module_states", "te_*", "use_orig_params", "verbose"),
    ),
    "callbacks.hf_checkpointer.overwrite": Rule(
        accepts=(True,), say="what an earlier start of the run exported of the same batch is written anew"
    ),
    "callbacks.generate_callback": Rule(say="write `generate: {prompts: [...], interval: ..., max_new_tokens: ...}`"),
}

VALUES: dict[str, dict[object, str]] = {
    "model.name": {
        "hf_causal_lm": "write `name: dbrx` with a preset or with the dimensions",
        "mpt_causal_lm": "write `name: dbrx` with a preset or with the dimensions",
    },
    "model.attn_config.attn_impl": {"torch": "write sdpa", "triton": "write auto"},
    "fsdp_config.sharding_strategy": {
        "SHARD_GRAD_OP": "write FULL_SHARD with reshard_after_forward: false",
        "NO_SHARD": "write `fsdp_config: null`, which replicates the model",
    },
    "fsdp_config.state_dict_type": {"local": "write sharded"},
    "callbacks.hf_checkpointer.precision": {
        "fp32": "write float32",
        "bf16": "write bfloat16",
        "float16": "write bfloat16, in which DBRX was trained",
    },
    "device_train_microbatch_size": {"auto": "write a number: FSDP2 cannot search for one"},
    "device_eval_batch_size": {"auto": "write a number: FSDP2 cannot search for one"},
    "device": {"cuda": "write gpu"},
    "precision": {"bf16": "write amp_bf16", "amp_fp16": "write amp_bf16"},
}

EPOCHS = (
    *("max_duration", "eval_interval", "save_interval", "console_log_interval"),
    "callbacks.hf_checkpointer.save_interval",
)
"""Durations that there may be a number alone, of epochs."""


def rule_for(path: str) -> Rule | None:
    """The rule about a key this schema lacks, if there is one."""
    return next((rule for pattern, rule in RULES.items() if fnmatchcase(path, pattern)), None)


def accepted(rule: Rule, value: object) -> bool:
    # 1 == True in Python, not in YAML.
    return any(type(value) is type(message) and value == message for message in rule.accepts)


def instead_of_key(path: str, value: object) -> str | None:
    """What follows a key of LLM Foundry that is none here."""
    rule = rule_for(path)
    if rule is None:
        return None
    return f"is {show(value)}, which cannot be: {rule.say}" if rule.accepts else f"is not taken: {rule.say}"


def instead_of(path: str, value: object) -> str | None:
    """What to write instead of a value that LLM Foundry has for a key of ours."""
    if path in EPOCHS and isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return f"a number alone is epochs in Composer and LLM Foundry; here write {value}ep, or {value}ba for batches"
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
    # These are commented out there.
    "save_interval": "5000ba",
    "save_num_checkpoints_to_keep": 1,
    "save_folder": "./{run_name}/checkpoints",
    "loggers.wandb.name": None,
    "loggers.wandb.group": None,
    "loggers.mlflow.tracking_uri": None,
    "loggers.mlflow.experiment_name": None,
}
"""The leaf keys of LLM Foundry's scripts/train/yamls/finetune/dbrx-full-ft.yaml and what each is there."""

REMARKS: dict[str, str] = {
    "run_name": "null takes $RUN_NAME, as there",
    "tokenizer.name": "a Hugging Face tokenizer, or `tiktoken` with `kwargs.model_name: gpt-4`, which is DBRX's",
    "train_loader.dataset.hf_name": "a hub dataset, a path, or `json`, `csv`, `parquet` with hf_kwargs",
    "eval_loader.dataset.hf_name": "a hub dataset, a path, or `json`, `csv`, `parquet` with hf_kwargs",
    "tokenizer.kwargs.model_max_length": "when it equals max_seq_len",
    "save_folder": "{run_name} is filled in, as there",
}
"""What is worth knowing about keys that are taken."""


def verdict(key: str) -> tuple[str, str]:
    """(`taken`, `taken when it says so` (what is done anyway) or `refused`; what to know or to write instead)."""
    value = LLM_FOUNDRY[key]
    instead = instead_of(key, value)
    if instead is not None:
        return "refused", instead
    rule = rule_for(key) or rule_for(key.rpartition(".")[0])
    if rule is None:
        return "taken", REMARKS.get(key, "")
    if accepted(rule, value):
        return "taken when it says so", rule.say
    return "refused", rule.say


def table() -> str:
    """The Markdown table in docs/llm-foundry.md."""
    lines = ["| key | value there | here | what is done anyway, or what to write instead |", "|---|---|---|---|"]
    for key, value in LLM_FOUNDRY.items():
        shown = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
        taken, say = verdict(key)
        lines.append(f"| `{key}` | `{shown}` | {taken} | {say} |")
    return "\n".join(lines)

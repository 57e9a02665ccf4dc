"""Hints for keys that have a different name in other frameworks and in Composer's callbacks.

The names are those of transformers' TrainingArguments, axolotl, torchtitan, Megatron and DeepSpeed.
"""

_KEYS: dict[tuple[str, ...], str] = {
    ("max_steps", "num_steps", "train_steps", "total_steps", "steps", "train_iters"): "max_duration, such as 1000ba",
    ("epochs", "num_epochs", "num_train_epochs", "max_epochs"): "max_duration, such as 2ep",
    (
        *("batch_size", "train_batch_size", "global_batch_size"),
    ): "global_train_batch_size, the rows of a step on all ranks",
    (
        *("micro_batch_size", "microbatch_size", "micro_batch_size_per_gpu", "train_micro_batch_size_per_gpu"),
        *("per_device_train_batch_size", "per_gpu_train_batch_size", "local_batch_size"),
    ): "device_train_microbatch_size, the rows that a rank processes at a time",
    ("eval_batch_size", "per_device_eval_batch_size", "per_gpu_eval_batch_size"): "device_eval_batch_size",
    (
        *("sequence_len", "seq_len", "seq_length", "sequence_length", "max_length", "max_seq_length", "block_size"),
        *("context_length", "cutoff_len"),
    ): "max_seq_len",
    ("learning_rate",): "optimizer.lr",
    ("optim",): "optimizer.name",
    ("warmup", "warmup_steps", "num_warmup_steps", "warmup_iters"): "scheduler.t_warmup, such as 100ba",
    ("warmup_ratio",): "scheduler.t_warmup, such as 0.03dur",
    ("lr_scheduler", "lr_scheduler_type"): "scheduler.name, such as cosine_with_warmup",
    (
        *("max_grad_norm", "max_norm", "clip_grad", "grad_clip", "gradient_clip_val"),
    ): "algorithms.gradient_clipping: {clipping_type: norm, clipping_threshold: 1.0}",
    ("bf16", "fp16", "dtype", "torch_dtype", "mixed_precision"): "precision: amp_bf16, or fp32",
    (
        *("base_model", "model_name", "model_name_or_path", "pretrained_model", "hf_model"),
    ): "model.pretrained_model_name_or_path",
    ("tokenizer_name", "tokenizer_path"): "tokenizer.name",
    (
        *("dataset", "datasets", "dataset_name", "dataset_path", "data_path", "train_data", "train_file"),
        "train_files",
    ): "train_loader.dataset.hf_name: a dataset on the hub, a file or a folder",
    ("val_set_size",): "eval_loader with separate rows, for example split: train[99%:] if train_loader has train[:99%]",
    ("eval_steps", "eval_freq", "eval_every"): "eval_interval, such as 100ba",
    ("save_steps", "save_freq", "save_every", "checkpoint_interval"): "save_interval, such as 500ba",
    ("save_total_limit",): "save_num_checkpoints_to_keep",
    ("logging_steps", "log_freq", "log_interval"): "console_log_interval, such as 10ba",
    ("output_dir", "out_dir", "save_dir", "checkpoint_dir"): "save_folder, such as runs/{run_name}/checkpoints",
    ("resume", "resume_from_checkpoint"): "autoresume: true, or a checkpoint in load_path",
    ("gradient_checkpointing",): "fsdp_config.activation_checkpointing: true",
    ("flash_attention", "flash_attn", "use_flash_attention"): "model.attn_config.attn_impl: auto, or flash",
    ("wandb", "wandb_project", "wandb_run_name", "wandb_entity"): "loggers.wandb",
    ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"): "lora: {r, alpha, dropout, target_modules}",
    ("load_in_4bit",): "lora.base_dtype: nf4",
    ("deepspeed", "fsdp"): "fsdp_config",
    ("model.hidden_size", "model.dim", "model.n_embd", "model.embed_dim"): "model.d_model",
    ("model.num_hidden_layers", "model.num_layers", "model.n_layer"): "model.n_layers",
    ("model.num_attention_heads", "model.num_heads", "model.n_head"): "model.n_heads",
    ("model.num_key_value_heads", "model.n_kv_heads"): "model.attn_config.kv_n_heads",
    ("model.intermediate_size", "model.moe_intermediate_size"): "model.ffn_config.ffn_hidden_size",
    ("model.num_experts", "model.num_local_experts"): "model.ffn_config.moe_num_experts",
    ("model.top_k", "model.num_experts_per_tok"): "model.ffn_config.moe_top_k",
    ("model.router_aux_loss_coef",): "model.ffn_config.moe_loss_weight",
    ("model.max_position_embeddings",): "model.max_seq_len",
    ("callbacks.curriculum_learning",): "train_loader.stages",
    ("callbacks.layer_freezing",): "optimizer.freeze, patterns of parameter names",
    ("callbacks.mono_checkpoint_saver",): "fsdp_config.state_dict_type: full",
    ("callbacks.checkpoint_saver",): "save_folder and save_interval",
    ("callbacks.nan_monitor",): "on_nonfinite: skip, or on_nonfinite: stop, which is the default",
}
"""Keys of other frameworks, and what to use instead. Each value begins with a key of this framework. Keys without a dot
are recognized in each of SECTIONS."""

_HINTS: dict[tuple[str, ...], str] = {
    ("callbacks.optimizer_monitor",): "the gradient norm is always logged, as l2_norm/grad/global: remove the key",
    (
        *("callbacks.early_stopper", "callbacks.activation_monitor", "callbacks.activation_monitor_full_model"),
        *("callbacks.memory_snapshot", "callbacks.oom_observer", "callbacks.system_metrics_monitor"),
        *("callbacks.threshold_stopper", "callbacks.scheduled_gc", "callbacks.export_for_inference"),
    ): "this callback is not supported: remove the key",
    (*("gradient_accumulation_steps", "gradient_accumulation", "grad_accum"),): (
        "the value is computed from global_train_batch_size, the number of ranks and device_train_microbatch_size: "
        "remove the key"
    ),
    (
        *("num_gpus", "num_nodes", "nproc_per_node", "devices", "world_size"),
    ): "the launcher sets the number of ranks, for example with `composer -n 8 train.py`: remove the key",
    ("sample_packing",): "rows are packed unless train_loader.dataset.packing is none: remove the key",
}

SUGGESTIONS = {name: f"use {text}" for names, text in _KEYS.items() for name in names} | {
    name: text for names, text in _HINTS.items() for name in names
}


SECTIONS = ("", "model", "optimizer", "scheduler", "train_loader", "train_loader.dataset")


def other_name(key: str) -> str | None:
    """Return the message for a key that does not exist in Dropless, or None if no other framework is known to use
    this key."""
    section, _, name = key.rpartition(".")
    hint = SUGGESTIONS.get(key) or (SUGGESTIONS.get(name) if section in SECTIONS else None)
    return f"is not a key: {hint}" if hint is not None else None

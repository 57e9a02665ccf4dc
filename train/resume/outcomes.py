"""How a resumed run handles each changed key: the change is applied, ignored or refused, with the reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from data.config.loader import StageConfig
from data.config.sections import is_within
from data.mixing.resume import DataState
from train.config.schema import TrainConfig
from train.models.shapes import adapter_shapes
from train.optim.states import trained_names
from train.resume.differences import ABSENT, Difference


class Outcome(NamedTuple):
    """How a changed key is handled, and why."""

    kind: Literal["applied", "ignored", "refused"]
    reason: str = ""
    also_of_weights: bool = False
    """Whether the change is also refused if only the checkpoint's weights are loaded."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" if self.reason else self.kind


@dataclass(frozen=True, kw_only=True)
class Case:
    """A changed key, and all information that its outcome depends on."""

    difference: Difference
    was: TrainConfig
    now: TrainConfig
    resuming: bool = True
    """Whether the checkpoint was found by autoresume; otherwise, it was specified with load_path."""
    state: DataState | None = None
    """The checkpoint's position in the data, if it is known."""
    other_rows: frozenset[str] | None = None
    """Names of the streams whose rows have changed; None if the data has not been opened yet."""


def outcome_of(case: Case) -> Outcome:
    """Return the outcome of the changed key."""
    decided = OUTCOMES[entry_of(case.difference.pattern)]
    return decided if isinstance(decided, Outcome) else decided(case)


def entry_of(pattern: str) -> str:
    """Return the key of the entry in OUTCOMES that applies to a key of known_paths. Raises KeyError if there is no
    entry."""
    section = pattern
    while section and pattern not in OUTCOMES:
        section, _, _ = section.rpartition(".")
        if f"{section}.*" in OUTCOMES:
            return f"{section}.*"
    if not section:
        raise KeyError(f"{pattern}: train/resume/outcomes.py has no entry for this key")
    return pattern


def _seed(case: Case) -> Outcome:
    """The seed determines the initial weights, dropout and the order of rows."""
    if _order_seed(case.was) != _order_seed(case.now):
        return Outcome("refused", "the order of rows depends on this key")
    return (
        Outcome("refused", _DRAWN_BASE)
        if _draws_base(case)
        else Outcome("ignored", "the checkpoint contains the random state")
    )


def _shuffle_seed(case: Case) -> Outcome:
    if not case.now.train_loader.dataset.shuffle:
        return Outcome("ignored", "rows are not shuffled")
    if _order_seed(case.was) == _order_seed(case.now):
        return Outcome("applied", "the order of rows already uses this seed")
    return Outcome("refused", "the order of rows depends on this key")


def _order_seed(config: TrainConfig) -> int | None:
    dataset = config.train_loader.dataset
    if not dataset.shuffle:
        return None
    return config.seed if dataset.shuffle_seed is None else dataset.shuffle_seed


def _draws_base(case: Case) -> bool:
    """Whether the frozen base of the adapters is initialized randomly, because neither pretrained weights nor a
    checkpoint is specified as the base."""
    now = case.now
    names = now.model.pretrained_model_name_or_path, now.load_path if now.load_weights_only else None
    return now.lora is not None and not any(names)


def _fresh_weights(case: Case) -> Outcome:
    return Outcome("refused", _DRAWN_BASE) if _draws_base(case) else _FROM_CHECKPOINT


def _pretrained(case: Case) -> Outcome:
    return _FROM_CHECKPOINT if case.now.lora is None else _BASE_IS_COMPARED


def _load(case: Case) -> Outcome:
    if not case.resuming:
        return APPLIED
    return Outcome("ignored", "the run resumes from its own checkpoint") if case.now.lora is None else _BASE_IS_COMPARED


def _lora(case: Case) -> Outcome:
    if case.now.lora is None:
        return Outcome("refused", "the checkpoint contains only adapters", also_of_weights=True)
    return Outcome("refused", "the checkpoint is a whole model, from which a run with lora loads only the weights")


def _adapters(case: Case) -> Outcome:
    was, now = (adapter_shapes(each.model, each.lora) for each in (case.was, case.now) if each.lora is not None)
    return Outcome("ignored", "the adapters have the same shapes") if was == now else _OTHER_TENSORS


def _rows(case: Case) -> Outcome:
    """The outcome of keys that determine the rows. If only the location or the description of the data has changed, the
    rows are the same."""
    if case.other_rows is None:
        return _PERHAPS_OTHER_ROWS
    return _OTHER_ROWS if case.other_rows & streams_of(case) else Outcome("applied", "the rows are unchanged")


def streams_of(case: Case) -> set[str]:
    """Return the names of the checkpoint's streams whose rows may depend on the changed key."""
    names = set(case.was.train_loader.dataset.each_stream())
    return {name for name in names if is_within(case.difference.key, [f"{_STREAMS}.{name}"])} or names


def _stream(case: Case) -> Outcome:
    if case.difference.now is ABSENT:
        return Outcome("refused", "the run has used rows of this stream; keep the stream with a proportion of 0")
    return Outcome("applied", "from here on")


def _stage(case: Case) -> Outcome:
    """The outcome of a change to a stage, or to a key of a stage. Completed stages cannot change."""
    number = int(case.difference.key.partition("[")[2].partition("]")[0])
    if case.state is None:
        return Outcome("applied", "this change is allowed only if the stage is not completed")
    if number < case.state.n_stages_done:
        return Outcome("refused", "the stage is completed")
    is_current = number == case.state.n_stages_done and case.state.in_a_stage
    if is_current and (case.difference.pattern.endswith(".name") or case.difference.now is ABSENT):
        return Outcome("refused", "the run is in this stage")
    if not is_current:
        return APPLIED
    if _begins_a_ramp(case, case.now.train_loader.stages[number]):
        return Outcome("ignored", "the run is in this ramp, which continues from its current value")
    return Outcome("applied", f"from batch {case.state.batch:,} on; earlier batches of this stage are unchanged")


def _begins_a_ramp(case: Case, stage: StageConfig) -> bool:
    """Whether the key is the start value of one of the stage's ramps."""
    (mix, last_mix), (scale, last_scale) = stage.mixes(), stage.lr_scales()
    below = case.difference.key.partition("].")[2]
    return (mix != last_mix and is_within(below, ["proportions.from"])) or (
        scale != last_scale and is_within(below, ["lr_scale.from"])
    )


def _batch_size(case: Case) -> Outcome:
    if case.state is not None and case.state.ends_a_stage:
        return Outcome("applied", "a stage ends here")
    return Outcome("refused", "this key can change only at the end of a stage")


def _optimizer(case: Case) -> Outcome:
    same = {case.was.optimizer.name, case.now.optimizer.name} == {"adamw", "decoupled_adamw"}
    return APPLIED if same else Outcome("refused", "the checkpoint's state belongs to a different optimizer")


def _of_optimizers(*names: str) -> Callable[[Case], Outcome]:
    def decide(case: Case) -> Outcome:
        name = case.now.optimizer.name
        return APPLIED if name in names else Outcome("ignored", f"{name} does not use this key")

    return decide


def _of_schedules(*names: str) -> Callable[[Case], Outcome]:
    def decide(case: Case) -> Outcome:
        name = case.now.scheduler.name.removesuffix("_with_warmup")
        return APPLIED if name in names else Outcome("ignored", f"{name}_with_warmup does not use this key")

    return decide


def _freeze(case: Case) -> Outcome:
    unfrozen = trained_names(case.now) - trained_names(case.was)
    if not unfrozen:
        return APPLIED
    return Outcome(
        "refused", f"the checkpoint has no optimizer state for parameters that were frozen ({min(unfrozen)})"
    )


def _at_the_start(case: Case) -> Outcome:
    return Outcome("ignored", "the run has already started") if case.resuming else APPLIED


_STREAMS = "train_loader.dataset.streams"
_DRAWN_BASE = "the initial values of the frozen base depend on this key"

APPLIED = Outcome("applied")
_FROM_CHECKPOINT = Outcome("ignored", "the weights come from the checkpoint")
_BASE_IS_COMPARED = Outcome("applied", "the frozen base must have the same weights")
_OTHER_TENSORS = Outcome("refused", "the checkpoint's tensors have different shapes", also_of_weights=True)
_OTHER_MEANING = Outcome("refused", "the weights were trained with the old value")
_ONE_SOURCE = Outcome("refused", "the checkpoint has different streams")
_OTHER_ROWS = Outcome("refused", "the rows have changed")
_PERHAPS_OTHER_ROWS = Outcome("refused", "this change is allowed only if the rows are unchanged")

Decided = Outcome | Callable[[Case], Outcome]

_OF_A_SOURCE: Mapping[str, Decided] = {
    "hf_name": _rows,
    "hf_kwargs.*": _rows,
    "safe_load": APPLIED,
    "local": _rows,
    "remote": _rows,
    "text": _rows,
    "split": _rows,
    "preprocessing_fn": _rows,
    "preprocessing_fn.*": _rows,
    "proportion": APPLIED,
    "repeat": APPLIED,
    "choose": APPLIED,
    "max_repeats": APPLIED,
}

OUTCOMES: Mapping[str, Decided] = {
    # The run.
    "max_seq_len": Outcome("refused", "rows would have a different length"),
    "run_name": APPLIED,
    "seed": _seed,
    "max_duration": APPLIED,
    "max_wall_time": APPLIED,
    "global_train_batch_size": _batch_size,
    "device_train_microbatch_size": APPLIED,
    "device_eval_batch_size": APPLIED,
    "eval_interval": APPLIED,
    "eval_first": _at_the_start,
    "eval_subset_num_batches": APPLIED,
    # The model: its weights and its computation.
    "model.name": APPLIED,
    "model.preset": Outcome("ignored", "each key that the preset sets is compared"),
    "model.pretrained_model_name_or_path": _pretrained,
    "model.d_model": _OTHER_TENSORS,
    "model.n_heads": _OTHER_TENSORS,
    "model.n_layers": _OTHER_TENSORS,
    "model.vocab_size": _OTHER_TENSORS,
    "model.attn_config.kv_n_heads": _OTHER_TENSORS,
    "model.ffn_config.ffn_hidden_size": _OTHER_TENSORS,
    "model.ffn_config.moe_num_experts": _OTHER_TENSORS,
    "model.attn_config.rope_theta": _OTHER_MEANING,
    "model.attn_config.clip_qkv": _OTHER_MEANING,
    "model.ffn_config.moe_top_k": _OTHER_MEANING,
    "model.ffn_config.moe_normalize_expert_weights": _OTHER_MEANING,
    "model.max_seq_len": APPLIED,
    "model.resid_pdrop": APPLIED,
    "model.emb_pdrop": APPLIED,
    "model.attn_config.attn_pdrop": APPLIED,
    "model.attn_config.attn_impl": APPLIED,
    "model.ffn_config.moe_jitter_eps": APPLIED,
    "model.ffn_config.moe_impl": APPLIED,
    "model.ffn_config.moe_recompute": APPLIED,
    "model.ffn_config.moe_zloss_weight": APPLIED,
    "model.ffn_config.moe_loss_weight": APPLIED,
    "model.ffn_config.moe_lbl_scope": APPLIED,
    "model.initializer_range": _fresh_weights,
    "model.scale_residual_init": _fresh_weights,
    "lora": _lora,
    "lora.r": _adapters,
    "lora.target_modules": _adapters,
    "lora.per_expert": _adapters,
    "lora.alpha": _OTHER_MEANING,
    "lora.dropout": APPLIED,
    "lora.base_dtype": APPLIED,
    # The data. Rows that were already used cannot change, but later rows can.
    "tokenizer.name": _rows,
    "tokenizer.kwargs.model_name": _rows,
    "tokenizer.kwargs.encoding_name": _rows,
    "tokenizer.kwargs.vocab_file": _rows,
    "tokenizer.kwargs.use_default_system_prompt": _rows,
    "tokenizer.kwargs.model_max_length": Outcome("ignored", "this key has the same value as max_seq_len"),
    "tokenizer.chat_template_drops": _rows,
    "tokenizer.chat_date": _rows,
    "train_loader.name": Outcome("ignored", "both loaders read the same data"),
    **{f"train_loader.dataset.{key}": decided for key, decided in _OF_A_SOURCE.items()},
    "train_loader.dataset.streams": _ONE_SOURCE,
    "train_loader.dataset.streams.NAME": _stream,
    **{f"train_loader.dataset.streams.NAME.{key}": decided for key, decided in _OF_A_SOURCE.items()},
    "train_loader.dataset.max_seq_len": Outcome("refused", "rows would have a different length"),
    "train_loader.dataset.packing": _rows,
    "train_loader.dataset.target_prompts": _rows,
    "train_loader.dataset.target_responses": _rows,
    "train_loader.dataset.excess_length": _rows,
    "train_loader.dataset.on_bad_example": _rows,
    "train_loader.dataset.shuffle": Outcome("refused", "the order of rows depends on this key"),
    "train_loader.dataset.shuffle_seed": _shuffle_seed,
    "train_loader.dataset.cache_dir": APPLIED,
    "train_loader.dataset.prepare_workers": APPLIED,
    "train_loader.dataset.cache_limit": APPLIED,
    "train_loader.dataset.max_prepare_bytes": APPLIED,
    "train_loader.stages[0]": _stage,
    "train_loader.stages[0].*": _stage,
    "train_loader.num_workers": APPLIED,
    "train_loader.prefetch_factor": APPLIED,
    "train_loader.pin_memory": APPLIED,
    "train_loader.persistent_workers": APPLIED,
    "eval_loader": APPLIED,
    "eval_loader.*": APPLIED,
    # How the weights are trained.
    "optimizer.name": _optimizer,
    "optimizer.lr": APPLIED,
    "optimizer.betas": _of_optimizers("adamw", "decoupled_adamw", "decoupled_lionw"),
    "optimizer.eps": _of_optimizers("adamw", "decoupled_adamw"),
    "optimizer.momentum": _of_optimizers("sgd"),
    "optimizer.weight_decay": APPLIED,
    "optimizer.no_weight_decay": APPLIED,
    "optimizer.param_groups[0]": APPLIED,
    "optimizer.param_groups[0].*": APPLIED,
    "optimizer.freeze": _freeze,
    "scheduler.name": APPLIED,
    "scheduler.t_warmup": APPLIED,
    "scheduler.alpha_f": _of_schedules("cosine", "linear_decay", "wsd"),
    "scheduler.t_decay": _of_schedules("wsd"),
    "algorithms.*": APPLIED,
    # Device, parallelism, checkpoints, monitoring and loggers.
    "device": APPLIED,
    "precision": APPLIED,
    "fsdp_config": APPLIED,
    "fsdp_config.sharding_strategy": APPLIED,
    "fsdp_config.data_parallel_replicate_degree": APPLIED,
    "fsdp_config.expert_parallel_degree": APPLIED,
    "fsdp_config.mixed_precision": APPLIED,
    "fsdp_config.state_dict_type": APPLIED,
    "fsdp_config.activation_checkpointing": APPLIED,
    "fsdp_config.activation_cpu_offload": APPLIED,
    "fsdp_config.reshard_after_forward": APPLIED,
    "dist_timeout": APPLIED,
    "save_folder": APPLIED,
    "save_staging_folder": APPLIED,
    "save_interval": APPLIED,
    "save_num_checkpoints_to_keep": APPLIED,
    "save_keep_every": APPLIED,
    "save_async": APPLIED,
    "on_save_error": APPLIED,
    "on_corrupt_checkpoint": APPLIED,
    "save_overwrite": _at_the_start,
    "autoresume": APPLIED,
    "load_path": _load,
    "load_weights_only": _load,
    "on_nonfinite": APPLIED,
    "on_spike": APPLIED,
    "spikes.*": APPLIED,
    "experts.*": APPLIED,
    "profile": APPLIED,
    "profile.*": APPLIED,
    "deadlines.*": APPLIED,
    "progress_bar": APPLIED,
    "log_to_console": APPLIED,
    "console_log_interval": APPLIED,
    "log_folder": APPLIED,
    "callbacks.*": APPLIED,
    "loggers.*": APPLIED,
}
"""The outcome of a change to each key. NAME stands for any name, and [0] for any index. `section.*` applies to all keys
below a section that have no entry of their own. Every key of the schema needs an entry here."""

"""README.md of an exported model: what it began from, what it was trained on and how, as far as that was noted."""

import json
import re
from pathlib import Path
from typing import Any

from data.base.redaction import redacted
from data.base.versions import versions
from data.config.dataset import DatasetConfig
from train.checkpoint.save_folder import RECORD, batch_of
from train.config.redaction import masked_yaml
from train.config.schema import TrainConfig
from train.models.config import LoraConfig
from train.models.precision import on_device
from train.models.shapes import count_parameters


def read_record(checkpoint: Path) -> dict[str, Any]:
    """What the run noted up to the checkpoint: of evaluations the newest, of starts the precision that each computed
    in (`precisions`), all else at the checkpoint's own batch."""
    record: dict[str, Any] = {}
    file, saved = checkpoint.parent / RECORD, batch_of(checkpoint)
    if not file.is_file():
        return record
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # a killed run's last
        match line:
            case {"event": "start", "batch": int(batch), "precision": str(precision), "device": str(device)}:
                if batch < saved:
                    used = on_device(precision, gpu=device != "CPU")
                    record["precisions"] = list(dict.fromkeys([*record.get("precisions", []), used]))
            case {"batch": int(batch), "eval": dict(metrics)} if record.get("eval_batch", 0) <= batch <= saved:
                record |= {"eval": metrics, "eval_batch": batch}
            case {"batch": int(batch), "rows": dict()} if batch == saved and "event" not in line:
                record |= {key: line[key] for key in ("batch", "rows", "tokens", "versions") if key in line}
    return record


def model_card(checkpoint: Path, config: TrainConfig, precision: str) -> str:
    """Markdown with the metadata that the hub reads."""
    record = read_record(checkpoint)
    total, active = count_parameters(config.model)
    base, lora = config.model.pretrained_model_name_or_path, config.lora
    begun = base or config.load_path
    how = f"fine-tuned from `{begun}`" if begun else "trained from fresh weights"
    parts = [
        front_matter("transformers", base),
        f"# {config.run_name or checkpoint.parent.name}",
        f"A DBRX of {total:,} parameters, {active:,} of which a token meets, {how} with Dropless.",
        f"Exported in {precision} from the checkpoint `{checkpoint.name}`.",
        _usage(),
        _section("Model", _model(config)),
        _section("Data", _data(config, record)),
        _section("Training", _training(config, record)),
        _section("LoRA", f"Adapters, merged into what they began with.\n\n{lora_table(lora)}" if lora else ""),
        _section("Evaluation", _evaluation(record)),
        _section("Versions", _table("package", "version", record.get("versions", versions()))),
        "<details><summary>The run's config</summary>\n\n```yaml\n" + masked_yaml(config) + "```\n\n</details>",
    ]
    return redacted("\n\n".join(part for part in parts if part) + "\n")


def front_matter(library: str, base: str | None) -> str:
    """The metadata, with the model that it began with where that is one of the hub's."""
    lines = [f"library_name: {library}", "pipeline_tag: text-generation", "tags: [dbrx, moe]"]
    # A path of this machine means nothing to the hub.
    if base is not None and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) and not Path(base).exists():
        lines.append(f"base_model: {base}")
    return "\n".join(["---", *lines, "---"])


def _usage() -> str:
    return """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _table(left: str, right: str, rows: dict[str, Any]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join(lines)


def _model(config: TrainConfig) -> str:
    model, attn, ffn = config.model, config.model.attn_config, config.model.ffn_config
    rows = {
        "layers": model.n_layers,
        "width": model.d_model,
        "heads (queries, keys and values)": f"{model.n_heads}, {attn.kv_n_heads}",
        "experts, and of them a token's": f"{ffn.moe_num_experts}, {ffn.moe_top_k}",
        "an expert's width": ffn.ffn_hidden_size,
        "vocabulary": f"{model.vocab_size:,}",
        "longest text": f"{model.max_seq_len:,} tokens",
    }
    return _table("of the model", "", rows)


def _data(config: TrainConfig, record: dict[str, Any]) -> str:
    lines = ["| stream | source | rows given | tokens given |", "|---|---|---|---|"]
    for name, dataset in config.train_loader.dataset.each_stream().items():
        given = [record.get(key, {}).get(name) for key in ("rows", "tokens")]
        counts = " | ".join("not noted" if count is None else f"{count:,}" for count in given)
        lines.append(f"| {name or 'all'} | `{_source(dataset)}` | {counts} |")
    return "\n".join(lines)


def _source(dataset: DatasetConfig) -> str:
    (key,) = dataset.sources()
    named = dataset.hf_kwargs.data_files if key == "hf_name" else None
    value = named if named is not None else getattr(dataset, key)
    if isinstance(value, dict):
        value = [f"{split}: {files}" for split, files in value.items()]
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if dataset.split is None else f"{text} ({dataset.split})"


def _training(config: TrainConfig, record: dict[str, Any]) -> str:
    optimizer, scheduler = config.optimizer, config.scheduler
    rows = {
        "optimizer": f"{optimizer.name}, betas {optimizer.betas}, weight decay {optimizer.weight_decay:g}",
        "learning rate": f"{optimizer.lr:g}, {scheduler.name}, warmup {scheduler.t_warmup}",
        "rows of a step": config.global_train_batch_size,
        "longest row": f"{config.max_seq_len:,} tokens",
        "precision": _precision(config, record),
        "seed": config.seed,
    }
    if (clipping := config.algorithms.gradient_clipping) is not None:
        rows["gradient clipping"] = f"{clipping.clipping_type} {clipping.clipping_threshold:g}"
    if "rows" in record:
        rows["steps"] = f"{record['batch']:,} of {config.max_duration}"
        rows["positions (padding included)"] = f"{sum(record['rows'].values()) * config.max_seq_len:,}"
    return _table("setting", "value", rows)


def _precision(config: TrainConfig, record: dict[str, Any]) -> str:
    if "precisions" in record:
        return ", then ".join(record["precisions"])
    on_cpu = on_device(config.precision, gpu=False)
    return config.precision if on_cpu == config.precision else f"{config.precision} ({on_cpu} if it ran on a CPU)"


def lora_table(lora: LoraConfig) -> str:
    """The adapters by the YAML's keys."""
    rows = {
        "r": lora.r,
        "alpha": f"{lora.alpha:g}",
        "dropout": f"{lora.dropout:g}",
        "target_modules": ", ".join(lora.target_modules),
        "per_expert": str(lora.per_expert).lower(),
        "base_dtype": lora.base_dtype,
    }
    return _table("lora", "value", rows)


def _evaluation(record: dict[str, Any]) -> str:
    if "eval" not in record:
        return ""
    # A number that is not finite is text.
    rows = {name: f"{float(value):.6g}" for name, value in record["eval"].items()}
    return f"On the run's held-out rows, after {record['eval_batch']:,} steps:\n\n{_table('metric', 'value', rows)}"

"""The model card (README.md) of an exported model: its origin, data, training and evaluation, as far as they were
recorded."""

import json
import re
from pathlib import Path
from typing import Any

from data.base.versions import versions
from data.config.dataset import DatasetConfig
from data.secrets.redaction import redacted
from train.checkpoint.save_folder import RECORD, batch_of
from train.config.redaction import masked_yaml
from train.config.schema import TrainConfig
from train.models.config import LoraConfig
from train.models.precision import on_device
from train.models.shapes import count_parameters


def read_record(checkpoint: Path) -> dict[str, Any]:
    """Return the values that the run had recorded when the checkpoint was saved: the newest evaluation, the precision
    of each start of the run (`precisions`), and the numbers of rows and tokens."""
    record: dict[str, Any] = {}
    file, saved = checkpoint.parent / RECORD, batch_of(checkpoint)
    if not file.is_file():
        return record
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the last line may be incomplete if the run was killed
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
    """The model card in Markdown, with metadata for the hub."""
    record = read_record(checkpoint)
    total, active = count_parameters(config.model)
    base, lora = config.model.pretrained_model_name_or_path, config.lora
    start = base or config.load_path
    how = f"fine-tuned from `{start}`" if start else "trained from scratch"
    parts = [
        front_matter("transformers", base),
        f"# {config.run_name or checkpoint.parent.name}",
        f"A DBRX mixture-of-experts model with {total:,} parameters ({active:,} active), {how} with Dropless.",
        f"Exported in {precision} from the checkpoint `{checkpoint.name}`.",
        _section("Usage", _usage()),
        _section("Model", _model(config)),
        _section("Data", _data(config, record)),
        _section("Training", _training(config, record)),
        _section(
            "LoRA",
            f"Trained with LoRA adapters, which are merged into the weights.\n\n{lora_table(lora)}" if lora else "",
        ),
        _section("Evaluation", _evaluation(record)),
        _section("Versions", _table("package", "version", record.get("versions", versions()))),
        "<details><summary>Training config</summary>\n\n```yaml\n" + masked_yaml(config) + "```\n\n</details>",
    ]
    return redacted("\n\n".join(part for part in parts if part) + "\n")


def front_matter(library: str, base: str | None) -> str:
    """Return the metadata block of a model card, with base_model if the run started from a model on the hub."""
    lines = [f"library_name: {library}", "pipeline_tag: text-generation", "tags: [dbrx, moe]"]
    # A local path is not a valid base_model.
    if base is not None and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) and not Path(base).exists():
        lines.append(f"base_model: {base}")
    return "\n".join(["---", *lines, "---"])


def _usage() -> str:
    return """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "path/to/this/folder"  # or its repository on the Hugging Face Hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)

inputs = tokenizer("Once upon a time", return_tensors="pt")
outputs = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))
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
        "hidden size": model.d_model,
        "attention heads (query, key/value)": f"{model.n_heads}, {attn.kv_n_heads}",
        "experts per layer": ffn.moe_num_experts,
        "active experts per token": ffn.moe_top_k,
        "hidden size of an expert": ffn.ffn_hidden_size,
        "vocabulary size": f"{model.vocab_size:,}",
        "maximum sequence length": f"{model.max_seq_len:,} tokens",
    }
    return _table("property", "value", rows)


def _data(config: TrainConfig, record: dict[str, Any]) -> str:
    lines = ["| stream | source | rows drawn | tokens drawn |", "|---|---|---|---|"]
    for name, dataset in config.train_loader.dataset.each_stream().items():
        drawn = [record.get(key, {}).get(name) for key in ("rows", "tokens")]
        counts = " | ".join("not recorded" if count is None else f"{count:,}" for count in drawn)
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
        "rows per step": config.global_train_batch_size,
        "sequence length": f"{config.max_seq_len:,} tokens",
        "precision": _precision(config, record),
        "seed": config.seed,
    }
    if (clipping := config.algorithms.gradient_clipping) is not None:
        rows["gradient clipping"] = f"{clipping.clipping_type} {clipping.clipping_threshold:g}"
    if "rows" in record:
        rows["steps"] = f"{record['batch']:,} of {config.max_duration}"
        rows["tokens (including padding)"] = f"{sum(record['rows'].values()) * config.max_seq_len:,}"
    return _table("setting", "value", rows)


def _precision(config: TrainConfig, record: dict[str, Any]) -> str:
    if "precisions" in record:
        return ", then ".join(record["precisions"])
    on_cpu = on_device(config.precision, gpu=False)
    return config.precision if on_cpu == config.precision else f"{config.precision} ({on_cpu} if trained on CPU)"


def lora_table(lora: LoraConfig) -> str:
    """Return a Markdown table of the adapters' settings, with their keys in the YAML."""
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
    # Numbers that are not finite are recorded as text.
    rows = {name: f"{float(value):.6g}" for name, value in record["eval"].items()}
    return (
        f"On the held-out rows of the run, after {record['eval_batch']:,} steps:\n\n{_table('metric', 'value', rows)}"
    )

"""The names of settings in a converter's error messages: flags of its command line, quoted for a shell."""

import shlex
from typing import Any

from data.base.errors import in_yaml, yaml_of

_ALIKE = (
    "compression",
    "excess_length",
    "max_seq_len",
    "on_bad_example",
    "packing",
    "target_prompts",
    "target_responses",
)
"""YAML keys whose flag has the same name."""
FLAGS = {
    "hf_name": "--dataset",
    "hf_kwargs.name": "--data_subset",
    "hf_kwargs.data_dir": "--dataset",
    "hf_kwargs.data_files": "--data_files",
    "hf_kwargs.streaming": "--streaming",
    "split": "--splits",
    "text": "--path",
    "preprocessing_fn": "--preprocessor",
    "prepare_workers": "--num_workers",
    "tokenizer.name": "--tokenizer",
    "tokenizer.kwargs": "--tokenizer_kwargs",
    "tokenizer.chat_template_drops": "--chat_template_drops",
    "tokenizer.chat_date": "--chat_date",
    "part": "--part",
    "engine": "--engine",
    "master": "--master",
    **{key: f"--{key}" for key in _ALIKE},
}
"""YAML key -> flag."""


def as_flag(key: str, value: Any = None) -> str:
    """The flag for a YAML key, followed by the value if a value is given. A key without a flag is written as in
    YAML."""
    if key.startswith("tokenizer.kwargs."):
        return f"{FLAGS['tokenizer.kwargs']} {key.removeprefix('tokenizer.kwargs.')}"
    if key not in FLAGS or value is None:
        return FLAGS.get(key) or in_yaml(key, value)
    values = value if isinstance(value, list) else [value if isinstance(value, str) else yaml_of(value)]
    return " ".join([FLAGS[key], *map(shlex.quote, values)])

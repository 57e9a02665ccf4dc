"""What a YAML says about data.

Checks raise ValueError with the key relative to the class; the reader of the YAML puts the path before it.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TokenizerKwargs:
    model_name: str | None = None
    """tiktoken: a model whose encoding is taken, such as gpt-4."""
    encoding_name: str | None = None
    """tiktoken: an encoding, such as cl100k_base (downloaded by tiktoken on first use)."""
    vocab_file: str | None = None
    """tiktoken: a local vocabulary, one base64 token and its rank a line."""
    model_max_length: int | None = None
    """Accepted when it equals max_seq_len, which is what the exported tokenizer gets."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    name: str
    """`tiktoken`, or a Hugging Face tokenizer folder or name."""
    kwargs: TokenizerKwargs = field(default_factory=TokenizerKwargs)

    def __post_init__(self) -> None:
        sources = {key: getattr(self.kwargs, key) for key in ("model_name", "encoding_name", "vocab_file")}
        given = [key for key, value in sources.items() if value is not None]
        if self.name == "tiktoken" and len(given) != 1:
            said = " and ".join(given) or "none of them is given"
            raise ValueError(f"kwargs needs exactly one of {', '.join(sources)} for tiktoken, but {said}")
        if self.name != "tiktoken" and given:
            raise ValueError(f"kwargs.{given[0]} belongs to `name: tiktoken`, but name is {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class HFKwargs:
    """What `datasets.load_dataset` is told besides the name."""

    data_dir: str | None = None
    data_files: str | list[str] | None = None
    name: str | None = None
    """The subset (configuration) of a hub dataset."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    hf_name: str
    """`json` for local JSONL named by hf_kwargs."""
    hf_kwargs: HFKwargs = field(default_factory=HFKwargs)
    split: str = "train"
    preprocessing_fn: str | dict[str, str] | None = None
    """A registered name, `module:function`, or {prompt: column, response: column}; null: rows are examples already."""
    max_seq_len: int
    """Tokens in a row."""
    packing: Literal["best_fit", "none"] = "best_fit"
    """best_fit puts several whole documents into a row; none gives each its own."""
    shuffle: bool = True
    shuffle_seed: int | None = None
    """null takes the seed of the run."""
    cache_dir: str = ".cache/dropless"
    """Where prepared rows are kept, in a folder named by the fingerprint of all that matters to them."""

    def __post_init__(self) -> None:
        if self.max_seq_len < 2:
            raise ValueError(f"max_seq_len is {self.max_seq_len}, but a row needs at least 2 tokens to predict one")
        if isinstance(self.preprocessing_fn, dict) and set(self.preprocessing_fn) != {"prompt", "response"}:
            form = "{prompt: column, response: column}"
            raise ValueError(f"preprocessing_fn is {self.preprocessing_fn}, but a mapping must be {form}")


@dataclass(frozen=True, kw_only=True)
class DataLoaderConfig:
    name: Literal["finetuning"]
    dataset: DatasetConfig
    num_workers: int = 2
    """Processes that read rows ahead; 0 reads in the training process."""
    prefetch_factor: int = 2
    """Batches that each worker holds ready."""
    pin_memory: bool = True
    persistent_workers: bool = True

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}, but there cannot be fewer than 0")
        if self.prefetch_factor < 1:
            raise ValueError(f"prefetch_factor is {self.prefetch_factor}, but a worker must hold at least 1 batch")

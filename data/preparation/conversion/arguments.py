"""Convert the parsed arguments of a converter to configs, splits and the tokenizer. Error messages contain the name of
the flag."""

import argparse
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from data.base.errors import ConfigError, setting
from data.base.paths import is_file_name
from data.config.build import build
from data.config.dataset import DatasetConfig
from data.config.sections import unchecked
from data.config.source import HFKwargs
from data.config.tokenizer import TokenizerConfig
from data.examples.preprocessing import PREPROCESSORS
from data.preparation.engines.choice import Engine, parse_share
from data.sources.formats.names import FORMATS
from data.tokenization.build import build_tokenizer
from data.tokenization.tokenizer import Tokenizer


def config_of(args: argparse.Namespace, **settings: Any) -> DatasetConfig:
    if args.num_workers is not None and args.num_workers < 0:
        raise ConfigError(f"--num_workers is {args.num_workers}, but it must be at least 0")
    workers = None if args.num_workers is None else max(args.num_workers, 1)
    own = {key: getattr(args, key) for key in ("max_seq_len", "packing", "on_bad_example")}
    return DatasetConfig(**own, prepare_workers=workers, **settings)


def splits_of(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the source of each split."""
    if args.data_files and len(args.data_files) != len(args.splits):
        raise ConfigError(
            f"--data_files lists {len(args.data_files)} and --splits lists {len(args.splits)}: specify exactly one "
            "file for each split"
        )
    if args.dataset in FORMATS and not args.data_files:
        raise ConfigError(f"--dataset is {args.dataset!r}, which reads files: specify the files in --data_files")
    if len(set(args.splits)) != len(args.splits):
        raise ConfigError(f"--splits is {' '.join(args.splits)}, but it must not contain duplicates")
    for split in args.splits:
        if not is_file_name(split) or not split.isprintable():
            raise ConfigError(f"--splits has {split!r}, but each split must be a valid folder name")
    for number, split in enumerate(args.splits):
        files = [args.data_files[number]] if args.data_files else None
        with unchecked():  # the rules of HFKwargs are checked later, as part of the dataset
            kwargs = HFKwargs(name=args.data_subset, data_files=files, streaming=args.streaming)
        yield split, {"hf_name": args.dataset, "hf_kwargs": kwargs, "split": None if args.data_files else split}


def preprocessing_fn_of(args: argparse.Namespace) -> str | dict[str, str] | None:
    if args.skip_preprocessing:
        return None
    if args.preprocessor is not None:
        return preprocessor_of(args)
    if args.dataset in PREPROCESSORS:
        return args.dataset
    raise ConfigError(
        f"--dataset is {args.dataset!r}, which has no registered preprocessing function: specify a function in "
        "--preprocessor, or set --skip-preprocessing if the rows are already examples"
    )


def preprocessor_of(args: argparse.Namespace) -> str | dict[str, str] | None:
    given = args.preprocessor
    return _mapping(given) if given is not None and given.startswith("{") else given


def _mapping(text: str) -> dict[str, str]:
    import yaml

    try:
        return {str(key): str(value) for key, value in yaml.safe_load(text).items()}
    except (yaml.YAMLError, AttributeError):
        form = "{prompt: COLUMN, response: COLUMN}"
        raise ConfigError(f"--preprocessor is {text!r}, but a mapping must have the form {form}") from None


def tokenizer_of(args: argparse.Namespace) -> Tokenizer | None:
    if args.tokenizer is None:
        _refuse_without_tokenizer(args)
        return None
    try:
        kwargs = json.loads(args.tokenizer_kwargs or "{}")
    except ValueError as error:
        raise ConfigError(
            f"is {args.tokenizer_kwargs!r}, which is not JSON ({error})", key="tokenizer.kwargs"
        ) from None
    own = {key: getattr(args, key) for key in ("chat_template_drops", "chat_date")}
    config = build(TokenizerConfig, {"name": args.tokenizer, "kwargs": kwargs, **own}, "tokenizer")
    length = config.kwargs.model_max_length
    if length not in (None, args.max_seq_len):
        raise ConfigError(
            f"is {length}, but {setting('max_seq_len')} is {args.max_seq_len}: remove model_max_length",
            key="tokenizer.kwargs.model_max_length",
        )
    return build_tokenizer(config)


def _refuse_without_tokenizer(args: argparse.Namespace) -> None:
    if args.tokenizer_kwargs is not None:
        raise ConfigError("--tokenizer_kwargs requires --tokenizer")
    if args.chat_template_drops or args.chat_date is not None:
        raise ConfigError("--chat_template_drops and --chat_date require --tokenizer")
    if args.excess_length != DatasetConfig.excess_length:
        raise ConfigError(
            f"--excess_length is {args.excess_length}, which requires --tokenizer: without a tokenizer, the length of "
            "examples is not limited"
        )


def engine_of(args: argparse.Namespace) -> Engine:
    if args.master is not None and args.engine != "spark":
        raise ConfigError(f"--master is {args.master!r}, which requires --engine spark")
    if args.part is None:
        return Engine(name=args.engine, master=args.master, merge_only=args.merge)
    for flag, given in (("--merge", args.merge), ("--engine spark", args.engine == "spark")):
        if given:
            raise ConfigError(f"--part is {args.part!r}, which cannot be combined with {flag}: remove one of the two")
    if urlsplit(args.out_root).scheme:
        raise ConfigError(f"--part requires a folder that all jobs can access, but --out_root is {args.out_root!r}")
    return Engine(share=parse_share(args.part))

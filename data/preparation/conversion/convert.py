"""Convert the dataset that is specified on the command line. The output for each split, or for all text files together,
is written to a local folder, a remote folder, or both."""

import argparse
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import xxhash

from data.base.console import node_logger
from data.base.errors import ConfigError
from data.config.dataset import DatasetConfig
from data.mds.writer import INDEX
from data.preparation.conversion.arguments import (
    config_of,
    engine_of,
    preprocessing_fn_of,
    preprocessor_of,
    splits_of,
    tokenizer_of,
)
from data.preparation.conversion.untokenized import write_untokenized
from data.preparation.engines.choice import Engine
from data.preparation.prepare import prepare_into
from data.sources.source import Source, open_source
from data.stores.address import url_defect
from data.tokenization.tokenizer import Tokenizer

CACHE = Path(".cache/dropless/converted")
"""If only a remote destination is given, the output is first written to this folder and then uploaded."""


def convert_finetuning(args: argparse.Namespace) -> None:
    """Convert each split to its own folder."""
    engine_of(args)
    settings = {key: getattr(args, key) for key in ("target_prompts", "target_responses", "excess_length")}
    _convert_splits(args, tokenizer_of(args), preprocessing_fn=preprocessing_fn_of(args), **settings)


def convert_text(args: argparse.Namespace) -> None:
    """Convert text files to one folder, or each split of a dataset with a column `text` to its own folder."""
    engine_of(args)
    given = [name for name in ("path", "input_folder", "dataset") if getattr(args, name) is not None]
    if len(given) != 1:
        found = f"{' and '.join(f'--{name}' for name in given)} are set" if given else "none of them is set"
        raise ConfigError(f"exactly one of --path, --input_folder and --dataset is required, but {found}")
    tokenizer, preprocessing_fn = tokenizer_of(args), preprocessor_of(args)
    if args.dataset is not None:
        _convert_splits(args, tokenizer, preprocessing_fn=preprocessing_fn)
        return
    text = args.path if args.path is not None else [args.input_folder]
    config = config_of(args, text=text, preprocessing_fn=preprocessing_fn)
    _convert(_Place.of(args, ""), config, tokenizer, open_source(config, rehash=args.rehash), args)


def _convert_splits(args: argparse.Namespace, tokenizer: Tokenizer | None, **settings: Any) -> None:
    outputs = [(_Place.of(args, split), config_of(args, **source, **settings)) for split, source in splits_of(args)]
    # All sources are opened first, so that a missing source is reported before anything is written.
    sources = [open_source(config, rehash=args.rehash) for _, config in outputs]
    for (place, config), source in zip(outputs, sources, strict=True):
        _convert(place, config, tokenizer, source, args)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """The local folder and the remote folder to which an output is written."""

    folder: Path
    remote: str | None
    passing: bool
    """Whether the folder is temporary, and is deleted after the upload."""

    @classmethod
    def of(cls, args: argparse.Namespace, split: str) -> "_Place":
        is_url = bool(urlsplit(args.out_root).scheme)
        remote = args.out_root if is_url or args.local is not None else args.remote
        if args.remote is not None and remote != args.remote:
            raise ConfigError(f"--remote is {args.remote!r}, but --out_root is {remote!r}: specify only one remote")
        if args.local is not None:
            root = Path(args.local)
        else:
            root = CACHE / xxhash.xxh64_hexdigest(args.out_root) if is_url else Path(args.out_root)
        under = f"{remote.rstrip('/')}/{split}".rstrip("/") if remote is not None else None
        return cls(folder=root / split, remote=under, passing=is_url and args.local is None)


def _convert(
    place: _Place, config: DatasetConfig, tokenizer: Tokenizer | None, source: Source, args: argparse.Namespace
) -> None:
    was_whole = (place.folder / INDEX).exists()
    output: dict[str, Any] = {
        "source": source,
        "compression": args.compression,
        "remote": place.remote,
        "engine": _engine(place, args),
    }
    if tokenizer is None:
        write_untokenized(place.folder, config, **output)
    else:
        prepare_into(place.folder, config, tokenizer, **output)
    if was_whole:
        node_logger.info(f"{place.folder} was already complete and is unchanged")
    if place.passing:
        shutil.rmtree(place.folder)


def _engine(place: _Place, args: argparse.Namespace) -> Engine:
    """The engine. If only an object store gets the output, Spark's tasks upload their parts there."""
    engine = engine_of(args)
    uploads = engine.name == "spark" and place.passing and url_defect(str(place.remote)) is None
    return replace(engine, remote=place.remote) if uploads else engine

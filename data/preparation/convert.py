"""Conversion by hand, once: what the converters' command lines mean, and what they call.

Flags have LLM Foundry's names and meaning where it has them.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

import xxhash

from data.base.errors import ConfigError, DataError, plain_os_errors
from data.base.paths import refuse_path_arguments
from data.config.dataset import DatasetConfig, HFKwargs
from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.examples.examples import Conversation, Example, PromptResponse, Reading, Text, TokenTurns, read_examples
from data.examples.preprocessing import PREPROCESSORS, resolve_preprocessing_fn
from data.mds.writer import INDEX
from data.preparation.prepare import check_compression, prepare_into, what_decides, write_once
from data.preparation.windows import Part, Tally, Task
from data.sources.formats.names import FORMATS
from data.sources.source import Source, open_source
from data.tokenization.tokenizer import Tokenizer, build_tokenizer

CACHE = Path(".cache/dropless/converted")
"""Where the output lies until it is sent, when only a remote place was named for it."""
COLUMNS = {
    PromptResponse.form: {"prompt": "str", "response": "str"},
    Conversation.form: {"messages": "json"},
    Text.form: {"text": "str"},
}
"""LLM Foundry's columns of what is not tokenized yet."""

FLAGS = {
    "hf_name": "--dataset",
    "hf_kwargs.name": "--data_subset",
    "hf_kwargs.data_dir": "--dataset",
    "hf_kwargs.data_files": "--data_files",
    "preprocessing_fn": "--preprocessor",
    "prepare_workers": "--num_workers",
    "on_bad_example": "--on_bad_example",
    "excess_length": "--excess_length",
    "tokenizer.name": "--tokenizer",
    "tokenizer.kwargs.": "--tokenizer_kwargs ",
    "tokenizer.chat_template_drops": "--chat_template_drops",
    "tokenizer.chat_date": "--chat_date",
}
"""What a YAML file calls it, and its flag."""
FIRST_FLAGS = {
    **{key: f"--{key}" for key in ("compression", "max_seq_len", "packing", "target_prompts", "target_responses")},
    "split": "--splits",
    "text": "--path",
}
"""Keys that are words as well, or flags already: only where a message begins with them."""
_KEYS = re.compile(
    # What stands in quotes is somebody's own.
    r"(?<!\w)'[^'\n]*'|(?<!\w)\"[^\"\n]*\"|"
    rf"^(?P<first>{'|'.join(FIRST_FLAGS)})(?= (?:is|has) )|"
    rf"(?<![\w.-])(?P<key>{'|'.join(map(re.escape, sorted(FLAGS, key=len, reverse=True)))})"
    # The value, where one is suggested: a word, a text in quotes, a mapping or a list.
    r"(?P<colon>: (?=[\w{\[']))?(?P<value>(?<=: )(?:\{[^{}\n]*\}|\[[^\[\]\n]*\]))?"
)


def with_flags(text: str) -> str:
    """An error's text with flags in the place of the keys that a YAML file would have."""

    def flag(found: re.Match[str]) -> str:
        if found["first"]:
            return FIRST_FLAGS[found["first"]]
        if not found["key"]:
            return found[0]
        value = found["value"] or ""
        # As a shell takes it.
        value = f"'{value}'" if value.startswith("{") else value.strip("[]").replace(",", "")
        return FLAGS[found["key"]] + (f" {value}" if found["colon"] else "")

    return _KEYS.sub(flag, text)


_PATHS = (
    *("--out_root", "--local", "--remote", "--path", "--input_folder", "--dataset", "--data_files", "--splits"),
    "--tokenizer",
)


def main_of(parser: argparse.ArgumentParser, convert: Callable[[argparse.Namespace], None]) -> Callable[..., int]:
    """The main function of a converter: 0, or 2 after one line that says what is wrong."""

    def main(argv: Sequence[str] | None = None) -> int:
        args = parser.parse_args(argv)
        try:
            refuse_path_arguments(args, *(name for name in _PATHS if hasattr(args, name.removeprefix("--"))))
            convert(args)
        except (ConfigError, DataError) as error:
            print(f"error: {with_flags(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("stopped: the same command goes on from here", file=sys.stderr)
            return 130
        return 0

    return main


def finetuning_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    _add_dataset(parser, required=True)
    _add_preprocessor(parser)
    skip = "rows are examples already; without it, and without --preprocessor, the dataset's name must be registered"
    parser.add_argument("--skip-preprocessing", action="store_true", help=skip)
    _add_output(parser)
    untokenized = "tiktoken, or a Hugging Face folder or name; without it the examples are written as they are, checked"
    _add_tokens(parser, tokenizer_help=untokenized)
    parser.add_argument("--target_prompts", default="none", help="none, all or length>=N (default: %(default)s)")
    default = "default: %(default)s"
    parser.add_argument("--target_responses", choices=("last", "all"), default="last", help=default)
    too_long = f"what becomes of an example longer than max_seq_len ({default})"
    parser.add_argument(
        "--excess_length", choices=_choices("excess_length"), default=DatasetConfig.excess_length, help=too_long
    )
    return parser


def text_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--path", nargs="+", help="text files, each a document: names or patterns")
    parser.add_argument("--input_folder", help="the same for all .txt files in a folder and those below it")
    _add_dataset(parser, required=False)
    _add_preprocessor(parser)
    _add_output(parser)
    _add_tokens(parser, tokenizer_help="tiktoken, or a Hugging Face folder or name", required=True)
    return parser


def convert_finetuning(args: argparse.Namespace) -> None:
    """Each split into a folder of its own. Raises ConfigError and DataError, which speak of keys: see with_flags."""
    settings = {key: getattr(args, key) for key in ("target_prompts", "target_responses", "excess_length")}
    _convert_splits(args, _tokenizer(args), preprocessing_fn=_preprocessing_fn(args), **settings)


def convert_text(args: argparse.Namespace) -> None:
    """Text files into the one folder, or each split of a dataset with a column `text` into one of its own."""
    given = [name for name in ("path", "input_folder", "dataset") if getattr(args, name) is not None]
    if len(given) != 1:
        message = " and ".join(f"--{name}" for name in given) or "none of them is given"
        raise ConfigError(f"exactly one of --path, --input_folder and --dataset is needed, but {message}")
    tokenizer, preprocessing_fn = _tokenizer(args), _preprocessor(args)
    if args.dataset is not None:
        _convert_splits(args, tokenizer, preprocessing_fn=preprocessing_fn)
        return
    text = args.path if args.path is not None else [args.input_folder]
    config = _config(args, text=text, preprocessing_fn=preprocessing_fn)
    _convert(_Place.of(args, ""), config, tokenizer, args.compression)


def _convert_splits(args: argparse.Namespace, tokenizer: Tokenizer | None, **settings: Any) -> None:
    outputs = [(_Place.of(args, split), _config(args, **source, **settings)) for split, source in _splits(args)]
    for _, config in outputs if len(outputs) > 1 else ():
        open_source(config)  # one that is not there is an error before any is written
    for place, config in outputs:
        _convert(place, config, tokenizer, args.compression)


def _add_dataset(parser: argparse.ArgumentParser, *, required: bool) -> None:
    what = "a hub dataset's name; json, csv or parquet for local --data_files; or the path of such a file or folder"
    parser.add_argument("--dataset", required=required, help=what)
    parser.add_argument("--data_subset", help="the subset (configuration) of a hub dataset")
    splits = "each becomes a folder of its own (default: train validation)"
    parser.add_argument("--splits", nargs="+", default=["train", "validation"], help=splits)
    parser.add_argument("--data_files", nargs="+", default=[], help="a file for each split, in their order")
    bad = "error: all bad rows are reported, and nothing is written; drop: they are counted (default: %(default)s)"
    parser.add_argument(
        "--on_bad_example", choices=_choices("on_bad_example"), default=DatasetConfig.on_bad_example, help=bad
    )


def _add_preprocessor(parser: argparse.ArgumentParser) -> None:
    maker = (
        "what makes examples of rows: a registered name, module:function, or '{prompt: COLUMN, response: COLUMN}', "
        "'{messages: COLUMN}' or '{text: COLUMN}'"
    )
    parser.add_argument("--preprocessor", help=maker)


def _add_output(parser: argparse.ArgumentParser) -> None:
    where = "where the folders are written: a folder, or s3:// and the like"
    parser.add_argument("--out_root", "--output_folder", required=True, help=where)
    parser.add_argument("--local", help="a folder for a local copy, when --out_root is remote")
    parser.add_argument("--remote", help="where the finished folders are sent as well: a folder, or s3:// and the like")
    parser.add_argument("--compression", help="of the shards, such as zstd or zstd:7 (default: none)")
    parser.add_argument("--num_workers", "--processes", type=int, help="processes that work (default: one a core)")


def _add_tokens(parser: argparse.ArgumentParser, *, tokenizer_help: str, required: bool = False) -> None:
    parser.add_argument("--tokenizer", required=required, help=tokenizer_help)
    parser.add_argument("--tokenizer_kwargs", help='JSON, such as \'{"model_name": "gpt-4"}\'')
    length = "tokens in a row (default: %(default)s)"
    parser.add_argument("--max_seq_len", "--concat_tokens", type=int, default=2048, help=length)
    drops = "what of conversations the chat template may leave out"
    choices = get_args(get_args(get_type_hints(TokenizerConfig)["chat_template_drops"])[0])
    parser.add_argument("--chat_template_drops", nargs="+", choices=choices, default=[], help=drops)
    parser.add_argument("--chat_date", help="the date that a chat template writes where it asks for today's")
    packing = "best_fit fills rows with several documents; none gives each its own (default: %(default)s)"
    parser.add_argument("--packing", choices=("best_fit", "none"), default="best_fit", help=packing)


def _choices(key: str) -> tuple[str, ...]:
    """The values that the config takes."""
    return get_args(get_type_hints(DatasetConfig)[key])


def _config(args: argparse.Namespace, **settings: Any) -> DatasetConfig:
    if args.num_workers is not None and args.num_workers < 0:
        raise ConfigError(f"--num_workers is {args.num_workers}, but there cannot be fewer than 0")
    workers = None if args.num_workers is None else max(args.num_workers, 1)
    try:
        return DatasetConfig(
            max_seq_len=args.max_seq_len,
            packing=args.packing,
            prepare_workers=workers,
            on_bad_example=args.on_bad_example,
            **settings,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _splits(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each split's name and the source that it is read from."""
    if args.data_files and len(args.data_files) != len(args.splits):
        raise ConfigError(
            f"--data_files names {len(args.data_files)} and --splits {len(args.splits)}, but each split has one file"
        )
    if args.dataset in FORMATS and not args.data_files:
        raise ConfigError(f"--dataset is {args.dataset!r}, which reads local files: name them in --data_files")
    if len(set(args.splits)) != len(args.splits):
        raise ConfigError(f"--splits is {' '.join(args.splits)}, but each can be written only once")
    for split in args.splits:
        if not split or split != Path(split).name or split in (".", ".."):
            raise ConfigError(f"--splits has {split!r}, but it becomes a folder's name in --out_root")
    for number, split in enumerate(args.splits):
        files = [args.data_files[number]] if args.data_files else None
        kwargs = HFKwargs(name=args.data_subset, data_files=files)
        yield split, {"hf_name": args.dataset, "hf_kwargs": kwargs, "split": None if args.data_files else split}


def _preprocessing_fn(args: argparse.Namespace) -> str | dict[str, str] | None:
    if args.skip_preprocessing:
        return None
    if args.preprocessor is not None:
        return _preprocessor(args)
    if args.dataset in PREPROCESSORS:
        return args.dataset
    raise ConfigError(
        f"--dataset is {args.dataset!r}, for which no preprocessing function is registered: name one in "
        "--preprocessor, or say --skip-preprocessing where rows are examples already"
    )


def _preprocessor(args: argparse.Namespace) -> str | dict[str, str] | None:
    given = args.preprocessor
    return _mapping(given) if given is not None and given.startswith("{") else given


def _mapping(text: str) -> dict[str, str]:
    import yaml

    try:
        return {str(key): str(value) for key, value in yaml.safe_load(text).items()}
    except (yaml.YAMLError, AttributeError):
        form = "{prompt: COLUMN, response: COLUMN}"
        raise ConfigError(f"--preprocessor is {text!r}, but a mapping is {form}") from None


def _tokenizer(args: argparse.Namespace) -> Tokenizer | None:
    if args.tokenizer is None:
        if args.tokenizer_kwargs is not None:
            raise ConfigError("--tokenizer_kwargs is given, but no --tokenizer")
        if args.chat_template_drops or args.chat_date is not None:
            raise ConfigError("--chat_template_drops and --chat_date are of a --tokenizer's chat template: give one")
        if args.excess_length != DatasetConfig.excess_length:
            raise ConfigError(
                f"--excess_length is {args.excess_length}, but without a --tokenizer no example is too long: give one"
            )
        return None
    try:
        given = json.loads(args.tokenizer_kwargs or "{}")
    except ValueError as error:
        raise ConfigError(f"--tokenizer_kwargs is {args.tokenizer_kwargs!r}, which is not JSON ({error})") from None
    known = [field.name for field in fields(TokenizerKwargs)]
    unknown = sorted(set(given) - set(known)) if isinstance(given, dict) else [args.tokenizer_kwargs]
    if unknown:
        raise ConfigError(f"--tokenizer_kwargs has {unknown[0]!r}, but it is an object of {', '.join(known)}")
    for key, value in given.items():
        kind = {"use_default_system_prompt": bool, "model_max_length": int}.get(key, str)
        if value is not None and type(value) is not kind:
            message = {bool: "true or false", int: "a whole number", str: "text in quotes"}[kind]
            raise ConfigError(f"--tokenizer_kwargs has {key} {json.dumps(value)}, but it must be {message}")
    if given.get("model_max_length") not in (None, args.max_seq_len):
        raise ConfigError(
            f"--tokenizer_kwargs has model_max_length {given['model_max_length']}, but --max_seq_len is "
            f"{args.max_seq_len}: leave it out"
        )
    try:
        config = TokenizerConfig(
            name=args.tokenizer,
            kwargs=TokenizerKwargs(**given),
            chat_template_drops=args.chat_template_drops,
            chat_date=args.chat_date,
        )
        return build_tokenizer(config)
    except ValueError as error:  # ConfigError among them
        raise ConfigError(f"--tokenizer {args.tokenizer}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where an output goes."""

    folder: Path
    remote: str | None
    passing: bool
    """The folder is only on the way to the remote place."""

    @classmethod
    def of(cls, args: argparse.Namespace, split: str) -> "_Place":
        is_url = bool(urlsplit(args.out_root).scheme)
        remote = args.out_root if is_url or args.local is not None else args.remote
        if args.remote is not None and remote != args.remote:
            raise ConfigError(f"--remote is {args.remote!r}, but the output goes to {remote!r} already: leave one out")
        if args.local is not None:
            root = Path(args.local)
        else:
            root = CACHE / xxhash.xxh64_hexdigest(args.out_root) if is_url else Path(args.out_root)
        under = f"{remote.rstrip('/')}/{split}".rstrip("/") if remote is not None else None
        return cls(folder=root / split, remote=under, passing=is_url and args.local is None)


def _convert(place: _Place, config: DatasetConfig, tokenizer: Tokenizer | None, compression: str | None) -> None:
    was_whole = (place.folder / INDEX).exists()
    if tokenizer is None:
        _write_untokenized(place.folder, config, compression=compression, remote=place.remote)
    else:
        prepare_into(place.folder, config, tokenizer, compression=compression, remote=place.remote)
    if was_whole:
        print(f"{place.folder} was whole already", flush=True)
    if place.passing:
        shutil.rmtree(place.folder)


def _write_untokenized(
    folder: Path, config: DatasetConfig, *, compression: str | None = None, remote: str | None = None
) -> None:
    """The valid examples in the source's order, in LLM Foundry's columns."""
    check_compression(compression)
    source = open_source(config)
    made_from = {**what_decides(config, source, None), "columns": "untokenized", "compression": compression}
    recipe = Untokenized(source=source, preprocess=resolve_preprocessing_fn(config.preprocessing_fn))
    with plain_os_errors(str(folder), "name another folder"):
        write_once(folder, recipe, config, made_from, {}, compression=compression, remote=remote)


@dataclass(frozen=True)
class Samples:
    """MDS samples, and how much they are: characters."""

    samples: list[dict[str, Any]]
    weight: int

    def received(self) -> "Samples":
        return self


@dataclass(frozen=True, kw_only=True)
class Untokenized:
    """The way of a chunk to samples of text."""

    source: Source
    preprocess: Callable[[Any], Any] | None

    def columns(self, form: str) -> dict[str, str]:
        return COLUMNS[form]

    def read(self, task: Task) -> Part:
        """Runs in a worker. Raises what the source raises, and ConfigError when rows are tokens already."""
        part = Part(size=task.chunk.size, reading=Reading(form=task.form, first_place=task.first_place), tally=Tally())
        samples = []
        for example in read_examples(self.source.rows(task.chunk), self.preprocess, part.reading):
            samples.append(_as_columns(example))
        part.tally.examples_kept = len(samples)
        if samples and not task.check_only:
            part.content = Samples(samples, sum(len(value) for sample in samples for value in sample.values()))
        return part

    def samples(self, window: list[Samples], tally: Tally) -> Iterator[dict[str, Any]]:
        for content in window:
            tally.rows += len(content.samples)
            yield from content.samples


def _as_columns(example: Example) -> dict[str, Any]:
    if isinstance(example, TokenTurns):
        raise ConfigError("the rows have turns, which are tokens already: give the --tokenizer that they are of")
    if isinstance(example, Conversation):
        if example.tools is not None:
            raise ConfigError("a row has tools, for which LLM Foundry's columns have no place: give the --tokenizer")
        return {"messages": example.messages}
    return (
        {"text": example.text}
        if isinstance(example, Text)
        else {
            "prompt": example.prompt,
            "response": example.response,
        }
    )

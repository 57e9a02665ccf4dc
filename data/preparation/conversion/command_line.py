"""The command lines of the converters. Flags that LLM Foundry's converters also have keep their names and meanings."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import get_args, get_type_hints

from data.base.console import show_error, show_on_console
from data.base.errors import ConfigError, DataError, settings_written
from data.base.paths import refuse_path_arguments
from data.config.dataset import DatasetConfig
from data.config.tokenizer import TokenizerConfig
from data.preparation.conversion.flags import as_flag
from data.preparation.engines.choice import ENGINES

_PATHS = (
    *("--out_root", "--local", "--remote", "--path", "--input_folder", "--dataset", "--data_files", "--splits"),
    "--tokenizer",
)


def main_of(parser: argparse.ArgumentParser, convert: Callable[[argparse.Namespace], None]) -> Callable[..., int]:
    """The main function of a converter. Returns 0 on success, or 2 after an error. The error is printed on one line."""
    parser.add_argument("--debug", action="store_true", help="if an error occurs, also print its traceback")

    def main(argv: Sequence[str] | None = None) -> int:
        args = parser.parse_args(argv)
        show_on_console()
        try:
            refuse_path_arguments(args, *(name for name in _PATHS if hasattr(args, name.removeprefix("--"))))
            with settings_written(as_flag):
                convert(args)
        except (ConfigError, DataError) as error:
            show_error(error, debug=args.debug)
            return 2
        except KeyboardInterrupt:
            print("stopped: run the same command again to resume", file=sys.stderr)
            return 130
        return 0

    return main


def finetuning_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    _add_dataset(parser, required=True)
    _add_preprocessor(parser)
    skip = (
        "use the rows as examples without preprocessing; if this flag is not set, set --preprocessor, or use a dataset "
        "that has a registered preprocessing function"
    )
    parser.add_argument("--skip-preprocessing", action="store_true", help=skip)
    _add_output(parser)
    untokenized = (
        "tiktoken, or the folder or name of a Hugging Face tokenizer; if this flag is not set, valid examples are "
        "written as text"
    )
    _add_tokens(parser, tokenizer_help=untokenized)
    default = "(default: %(default)s)"
    prompts = f"prompts that are trained on: none, all or length>=N {default}"
    parser.add_argument("--target_prompts", default="none", help=prompts)
    trained = f"responses that are trained on {default}"
    parser.add_argument("--target_responses", choices=("last", "all"), default="last", help=trained)
    too_long = f"what to do with an example that is longer than max_seq_len {default}"
    parser.add_argument(
        "--excess_length", choices=_choices("excess_length"), default=DatasetConfig.excess_length, help=too_long
    )
    return parser


def text_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--path", nargs="+", help="names or patterns of text files, also in an object store, one document per file"
    )
    parser.add_argument("--input_folder", help="a folder; the .txt files in it and in its subfolders are read")
    _add_dataset(parser, required=False)
    _add_preprocessor(parser)
    _add_output(parser)
    _add_tokens(parser, tokenizer_help="tiktoken, or the folder or name of a Hugging Face tokenizer", required=True)
    return parser


def _add_dataset(parser: argparse.ArgumentParser, *, required: bool) -> None:
    what = (
        "name of a hub dataset; json, csv or parquet for --data_files; or the path of one csv, json or parquet file, "
        "or of a folder with such files, which can also be in an object store (s3:// or gs://)"
    )
    parser.add_argument("--dataset", required=required, help=what)
    parser.add_argument("--data_subset", help="the subset (configuration) of a hub dataset")
    splits = "names of the splits; each split is written to its own folder (default: train validation)"
    parser.add_argument("--splits", nargs="+", default=["train", "validation"], help=splits)
    parser.add_argument(
        "--data_files",
        nargs="+",
        default=[],
        help="files, also in an object store: one file or pattern per split, in the order of --splits",
    )
    what = "read the files of a hub dataset over the network, instead of downloading them first"
    parser.add_argument("--streaming", action="store_true", help=what)
    bad = "error: report all invalid rows and write nothing; drop: skip and count invalid rows (default: %(default)s)"
    parser.add_argument(
        "--on_bad_example", choices=_choices("on_bad_example"), default=DatasetConfig.on_bad_example, help=bad
    )


def _add_preprocessor(parser: argparse.ArgumentParser) -> None:
    maker = (
        "how to convert rows to examples: a registered name, module:function, or the columns to use: '{prompt: COLUMN, "
        "response: COLUMN}', '{messages: COLUMN}' or '{text: COLUMN}'"
    )
    parser.add_argument("--preprocessor", help=maker)


def _add_output(parser: argparse.ArgumentParser) -> None:
    where = "output folder: a path, or an address such as s3://..."
    parser.add_argument("--out_root", "--output_folder", required=True, help=where)
    parser.add_argument("--local", help="a folder for a local copy, if --out_root is remote")
    parser.add_argument(
        "--remote", help="additional destination for the finished folders: a path, or an address such as s3://..."
    )
    parser.add_argument("--compression", help="compression of the shards, such as zstd or zstd:7 (default: none)")
    parser.add_argument("--rehash", action="store_true", help="read the input files again, even if they seem unchanged")
    parser.add_argument(
        "--num_workers", "--processes", type=int, help="number of processes (default: one per CPU core)"
    )
    where = "where the input is prepared: local (processes on this machine) or spark (default: %(default)s)"
    parser.add_argument("--engine", choices=ENGINES, default="local", help=where)
    master = "URL of Spark's master, such as 'local[2]' or spark://HOST:7077 (default: the active session)"
    parser.add_argument("--master", help=master)
    one = "prepare only part I of N (I counts from 0), so that N jobs share the work; combine the parts with --merge"
    parser.add_argument("--part", metavar="I/N", help=one)
    parser.add_argument("--merge", action="store_true", help="combine the parts that jobs with --part have prepared")


def _add_tokens(parser: argparse.ArgumentParser, *, tokenizer_help: str, required: bool = False) -> None:
    parser.add_argument("--tokenizer", required=required, help=tokenizer_help)
    parser.add_argument(
        "--tokenizer_kwargs", help='arguments of the tokenizer as JSON, such as \'{"model_name": "gpt-4"}\''
    )
    length = "maximum number of tokens in a row (default: %(default)s)"
    parser.add_argument("--max_seq_len", "--concat_tokens", type=int, default=2048, help=length)
    drops = "parts of conversations that the chat template may leave out"
    choices = get_args(get_args(get_type_hints(TokenizerConfig)["chat_template_drops"])[0])
    parser.add_argument("--chat_template_drops", nargs="+", choices=choices, default=[], help=drops)
    parser.add_argument("--chat_date", help="the date for chat templates that insert today's date")
    packing = "best_fit: several documents per row; none: one document per row (default: %(default)s)"
    parser.add_argument("--packing", choices=("best_fit", "none"), default="best_fit", help=packing)


def _choices(key: str) -> tuple[str, ...]:
    """The valid values of the config key."""
    return get_args(get_type_hints(DatasetConfig)[key])

"""Evaluates a model on tasks of the lm-evaluation-harness, and by exact match on a JSONL file of prompts and responses.

  evaluate.py runs/dbrx_tiny/hf --exact_match quickstart/heldout.jsonl
  evaluate.py runs/mine/hf --tasks arc_easy hellaswag --num_fewshot 5
  evaluate.py runs/mine/hf --tasks my_tasks/                       all tasks in the YAML files of a folder, offline

The results are printed. If the model is an exported folder, the results are also saved in evaluation.json and in the
model card of this folder.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.generation.questions import Question


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError, DataError

    show_on_console()
    try:
        _evaluate(args)
    except (ConfigError, DataError) as error:
        show_error(error, debug=args.debug)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    from train.models.precision import PRECISIONS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder",
        type=Path,
        help="an exported model; without --tasks, a checkpoint or a run's folder is also accepted",
    )
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK", help="names or YAML files of tasks, or folders of YAML files"
    )
    parser.add_argument(
        "--exact_match",
        type=Path,
        metavar="FILE",
        help="a .jsonl file with {prompt, response} or {messages} on each line",
    )
    converts = "how to convert the records of --exact_match to questions: a registered name, module:function, or "
    converts += "columns such as '{prompt: question, response: answer}'"
    parser.add_argument("--preprocessor", metavar="NAME", help=converts)
    parser.add_argument(
        "--num_fewshot", type=int, help="number of examples before each question (default: set by the task)"
    )
    parser.add_argument("--limit", type=int, help="maximum number of questions per task (default: all)")
    parser.add_argument(
        "--apply_chat_template",
        action="store_true",
        help="format the questions of --tasks as user messages with the chat template",
    )
    parser.add_argument("--batch_size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: the GPU if there is one")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this JSON file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for invalid or conflicting options."""
    from data.base.errors import ConfigError
    from data.base.paths import refuse_path_arguments

    refuse_path_arguments(args, "folder", "--exact_match", "--json", "--tasks")
    for name in ("batch_size", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}, but it must be at least 1")
    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise ConfigError(f"--num_fewshot is {args.num_fewshot}, but it cannot be negative")
    if not args.tasks and args.exact_match is None:
        raise ConfigError("nothing to evaluate: add --tasks, --exact_match, or both")
    if args.preprocessor is not None and args.exact_match is None:
        raise ConfigError("--preprocessor needs --exact_match: add --exact_match, or remove --preprocessor")
    of_tasks = {"num_fewshot": args.num_fewshot is not None, "apply_chat_template": args.apply_chat_template}
    for name in (name for name, given in of_tasks.items() if given and not args.tasks):
        raise ConfigError(f"--{name} needs --tasks: add --tasks, or remove --{name}")
    if args.json is not None and not os.access(args.json.parent, os.W_OK):
        raise ConfigError(f"--json is {str(args.json)!r}, but its folder does not exist or is not writable")


def _check_exported(folder: Path) -> None:
    """Raise ConfigError if results cannot be saved in the folder."""
    from data.base.errors import ConfigError
    from train.generation.results import read_kept

    read_kept(folder)
    if not os.access(folder, os.W_OK):
        raise ConfigError(
            f"{folder} is not writable, but the results are saved in this folder: evaluate a copy of the folder"
        )


def _read_questions(args: argparse.Namespace) -> "list[Question]":
    from data.base.errors import settings_written
    from data.examples.preprocessing import resolve_preprocessing_fn
    from data.preparation.conversion.arguments import preprocessor_of
    from data.preparation.conversion.flags import as_flag
    from train.generation.questions import read_questions

    with settings_written(as_flag):
        preprocess = resolve_preprocessing_fn(preprocessor_of(args))
        return read_questions(args.exact_match, with_answers=True, preprocess=preprocess)


def _evaluate(args: argparse.Namespace) -> None:
    _check_arguments(args)

    from data.base.errors import ConfigError

    questions = _read_questions(args) if args.exact_match is not None else []

    from train.generation.exact_match import exact_match, exact_match_result
    from train.generation.open_model import default_precision, is_exported, open_model, resolve_model
    from train.generation.results import keep
    from train.generation.tasks import run_tasks
    from train.hardware.device import choose_device

    args.folder = resolve_model(args.folder)
    exported = is_exported(args.folder)
    if exported:
        _check_exported(args.folder)
    elif args.tasks:
        raise ConfigError(
            f"{args.folder} is not an exported model, which --tasks requires: export it with "
            "scripts/convert_checkpoint_to_hf.py"
        )
    device = choose_device(args.device)
    precision = args.precision or default_precision(device)
    results = {}
    if args.tasks:
        results |= run_tasks(
            args.folder,
            args.tasks,
            batch_size=args.batch_size,
            precision=precision,
            device=device,
            num_fewshot=args.num_fewshot,
            limit=args.limit,
            apply_chat_template=args.apply_chat_template,
        )
    if args.exact_match is not None:
        opened = open_model(args.folder, device, precision)
        checked = exact_match(opened, questions[: args.limit], args.batch_size)
        results[args.exact_match.name] = exact_match_result(checked)
    _print_table(results)
    if exported:
        keep(args.folder, results, precision)
        print(f"saved in {args.folder / 'evaluation.json'} and in the README.md next to it")
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from train.generation.results import rows_of

    table = Table("task", "metric", "value", "asked")
    for row in rows_of(results):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 110, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())

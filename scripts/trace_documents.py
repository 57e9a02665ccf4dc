"""Traces documents through a run: from steps to documents, and from documents to steps and checkpoints.

  trace_documents.py runs/mine --steps 100:120                     the documents of these steps
  trace_documents.py runs/mine --document data/web.jsonl:51200     the steps and the checkpoints that saw a document
  trace_documents.py runs/mine --documents removed.txt             the same for a list, one document per line
  trace_documents.py runs/mine --seen                              how often each stream, file and license was seen

A document is PATH:POSITION, where POSITION is a byte offset in the decompressed file for JSONL and text, and a record
number from 0 for Parquet, Arrow and CSV. PATH:L120 is line 120 of a JSONL file, and PATH alone is every document of the
file. Steps are numbered from 1, as in metrics.jsonl; the checkpoint ep0-ba100 contains the steps 1 to 100.
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
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError, DataError, os_errors_named
    from data.base.paths import refuse_output, refuse_path_arguments

    show_on_console()
    try:
        refuse_path_arguments(args, "--documents")
        if args.json is not None:
            refuse_output("--json", args.json, args.documents)
        if args.until is not None and not args.seen:
            raise ConfigError(f"--until is {args.until}, but it applies only to --seen")
        lines, values, complete = _answer(args)
        if args.json is not None:
            with os_errors_named(f"--json {args.json}", "written"):
                args.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        print("\n".join(lines), flush=True)
        return 0 if complete else 1
    except (ConfigError, DataError) as error:
        show_error(error, debug=args.debug)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe. Redirect stdout, because the final flush of the interpreter would print an
        # error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a run's save_folder (a path or an address) or log_folder, or its config for train.py",
    )
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--steps", type=_steps, metavar="A:B", help="show the documents of the steps A to B")
    question.add_argument(
        "--document",
        action="append",
        metavar="PATH:POSITION",
        help="show the steps and the checkpoints that saw this document; may be repeated",
    )
    question.add_argument("--documents", type=Path, metavar="FILE", help="like --document, for each line of a file")
    question.add_argument("--seen", action="store_true", help="count rows, documents and tokens by stream and license")
    parser.add_argument("--until", type=int, metavar="STEP", help="with --seen: count only up to this step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the complete answer to this file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    return parser


def _steps(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    try:
        steps = int(first), int(last if colon else first)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a step or a range of steps such as 100:120") from None
    if steps[0] > steps[1]:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins: write {steps[1]}:{steps[0]}")
    return steps


def _answer(args: argparse.Namespace) -> tuple[list[str], dict[str, Any], bool]:
    """The answer as lines of text and as JSON values, and whether all given documents were found in the rows."""
    from dataclasses import asdict

    from data.lineage.references import parse_reference, read_references
    from train.lineage import tables
    from train.lineage.opening import open_run
    from train.lineage.questions import rows_of_steps, seen, trace

    references = [parse_reference(text) for text in args.document or ()]
    if args.documents is not None:
        references = read_references(args.documents)
    run = open_run(args.run)
    about, complete = tables.about(run), True
    if references:
        found = trace(run, references)
        lines, values = tables.trace_tables(found), tables.trace_json(found)
        complete = all(each.documents for each in found.found)
    elif args.seen:
        streams = seen(run, args.until)
        lines, values = tables.seen_tables(streams), tables.seen_json(streams)
    else:
        rows = [*rows_of_steps(run, *args.steps)]
        lines, values = tables.steps_table(rows), {"rows": [asdict(each) for each in rows]}
    return [*lines, *(f"note: {note}" for note in about["notes"])], {**about, **values}, complete


if __name__ == "__main__":
    sys.exit(main())

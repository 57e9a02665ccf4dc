r"""Generates text with an exported Hugging Face folder or a checkpoint: for prompts, for a file, or in a conversation.

generate.py runs/dbrx_tiny/hf $'Reverse: kotab\n'
generate.py runs/dbrx_tiny/hf --file prompts.jsonl --output answers.jsonl --temperature 0.7 --top_p 0.9
generate.py runs/dbrx_tiny/checkpoints --system_prompt 'Answer in one word.'      a conversation on the terminal
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.config.sampling import Sampling
    from train.generation.open_model import Opened
    from train.generation.questions import Question


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_intermixed_args(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError, DataError

    show_on_console()
    try:
        _generate(args)
        sys.stdout.flush()
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
    from train.models.precision import PRECISIONS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an exported model, a sharded checkpoint, or a run's folder")
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="a prompt; without prompts and --file, a conversation is started"
    )
    parser.add_argument(
        "--file",
        type=Path,
        help="file of prompts: a .jsonl file with {prompt} or {messages}, or a text file with one prompt per line",
    )
    parser.add_argument(
        "--chat", action="store_true", help="format each PROMPT as a user message with the chat template"
    )
    parser.add_argument("--system_prompt", metavar="TEXT", help="system message at the start of a conversation")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the answers to this .jsonl file")
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        help="default: 256, or fewer if the model's max_seq_len does not allow that many",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default) means greedy decoding")
    parser.add_argument("--top_k", type=int, help="sample only from the k most likely tokens")
    nucleus = "nucleus sampling: sample from the most likely tokens whose cumulative probability reaches this value"
    parser.add_argument("--top_p", type=float, default=1.0, help=nucleus)
    parser.add_argument("--seed", type=int, default=0, help="random seed for sampling (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=16, help="number of prompts per batch (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: the GPU if there is one")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    return parser


def _generate(args: argparse.Namespace) -> None:
    # Check the arguments before torch is imported, and the prompts before the weights are loaded.
    from data.base.errors import ConfigError
    from data.base.paths import refuse_path_arguments

    refuse_path_arguments(args, "folder", "--file", "--output")
    if args.batch_size < 1:
        raise ConfigError(f"--batch_size is {args.batch_size}, but it must be at least 1")
    if args.file is not None and args.prompts:
        raise ConfigError("--file and prompts are both given: put the prompts into the file, or remove --file")
    asked = args.file is not None or bool(args.prompts)
    if args.output is not None:
        if not asked:
            raise ConfigError(
                "--output is given without prompts, but conversations are not saved: add prompts or --file"
            )
        _check_output(args.output)
    if args.system_prompt is not None and asked and not args.chat:
        raise ConfigError("--system_prompt is given, but plain prompts have no system message: add --chat")
    if args.file is not None and args.chat and args.file.suffix == ".jsonl":
        raise ConfigError(
            "--chat is given, but a .jsonl file defines its own conversations: use {messages} in the file"
        )

    from train.config.sampling import Sampling
    from train.generation.questions import as_question, question_text, read_questions

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    try:
        sampling = Sampling(**{name: getattr(args, name) for name in names if getattr(args, name) is not None})
    except ValueError as error:
        raise ConfigError(f"--{error}") from None
    questions = read_questions(args.file) if args.file is not None else [as_question(text) for text in args.prompts]
    if args.chat:
        questions = [
            as_question(question_text(question), chat=True, system_prompt=args.system_prompt) for question in questions
        ]

    from train.generation.open_model import open_model
    from train.hardware.device import choose_device

    opened = open_model(args.folder, choose_device(args.device), args.precision)
    print(opened.description, file=sys.stderr)
    if asked:
        _answer(opened, questions, sampling, args)
    else:
        _chat(opened, sampling, args.system_prompt)


def _check_output(output: Path) -> None:
    from data.base.errors import ConfigError

    if output.suffix != ".jsonl":
        raise ConfigError(f"--output is {str(output)!r}, but answers are written as JSON lines: specify a .jsonl file")
    if output.exists():
        raise ConfigError(f"--output is {str(output)!r}, which already exists: specify another file")
    if not os.access(output.parent, os.W_OK):
        raise ConfigError(f"--output is {str(output)!r}, but its folder does not exist or is not writable")


def _answer(opened: "Opened", questions: "list[Question]", sampling: "Sampling", args: argparse.Namespace) -> None:
    from train.generation.ask import as_json, ask
    from train.generation.questions import check_room, encode, question_text

    prompts, output = encode(questions, opened, sampling), args.output
    if args.max_new_tokens is not None:
        check_room(prompts, args.max_new_tokens, opened.decoder.max_seq_len)
    if output is not None:
        from tqdm import tqdm

        part = output.with_name(f".{output.name}.part-{os.getpid()}")
        try:
            with part.open("w", encoding="utf-8") as file:
                answers = tqdm(ask(opened, prompts, sampling, args.batch_size), total=len(prompts), disable=None)
                for question, answer in zip(questions, answers, strict=True):
                    file.write(as_json(question, answer) + "\n")
            part.rename(output)
        finally:
            part.unlink(missing_ok=True)
        print(f"answers written to {output}: {len(prompts)}")
        return
    begun = -1

    def show(number: int, piece: str) -> None:
        nonlocal begun
        if number != begun and len(prompts) > 1:
            text = question_text(questions[number]).strip()
            _write(f"{'' if number == 0 else chr(10)}> {text}\n")
        begun = number
        _write(piece)

    for _ in ask(opened, prompts, sampling, args.batch_size, show):
        _write("\n")


def _chat(opened: "Opened", sampling: "Sampling", system_prompt: str | None) -> None:
    from train.generation.chat import EXIT, NEW, chat

    if sys.stdin.isatty():
        # This import enables arrow keys and the line history.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
        print(f"{NEW} starts a new conversation, {EXIT} or ^D ends the program, ^C stops an answer", file=sys.stderr)
    chat(opened, sampling, system_prompt, lambda: input("> " if sys.stdin.isatty() else ""), _write)


def _write(text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())

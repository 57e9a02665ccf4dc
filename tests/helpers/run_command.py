"""Run a command of the documentation, or only check its arguments.

Programs of this repository run in processes forked from one that has imported the libraries, because each import takes
seconds. Everything else runs in bash.
"""

import argparse
import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from data.base.errors import ConfigError
from tests.helpers.ranks import ends_of_ranks, run_ranks
from train.config.load import load_config

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv" / "bin"
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
EXPORT = "scripts/convert_checkpoint_to_hf.py"
_PYTHON = {"python", "python3", ".venv/bin/python"}


@dataclass(frozen=True)
class Program:
    """A Python file of this repository, as a command starts it."""

    script: str
    arguments: list[str]
    ranks: int = 0
    """Number of processes that a launcher starts, or 0 without a launcher."""
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    """stdout and stderr of all ranks."""


def words(text: str) -> list[str]:
    """Return the words of a command after expansion by bash."""
    script = f"printf '%s\\0' {text}"
    done = subprocess.run(["bash", "-uc", script], cwd=ROOT, capture_output=True, text=True, env=_env(), check=False)
    if done.returncode:
        raise ValueError(f"bash cannot expand {text!r}: {done.stderr.strip()}")
    return done.stdout.removesuffix("\0").split("\0")


def needs_shell(text: str) -> bool:
    """Whether a command has several lines, a pipe or a redirection."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|<>&;()")
    lexer.whitespace_split = True
    return "\n" in text or any(set(token) <= set("|<>&;()") for token in lexer)


def program_of(text: str) -> Program | None:
    """Return the program that a command starts, directly or with a launcher. Returns None for other commands, and for
    commands with pipes or redirections."""
    if needs_shell(text):
        return None
    env, rest = {}, words(text)
    while re.match(r"[A-Z_]+=", rest[0]):
        name, _, env[name] = rest.pop(0).partition("=")
    name, *rest = rest
    ranks = 0
    if name.rpartition("/")[2] in ("composer", "torchrun"):
        ranks, rest = _launched(name.rpartition("/")[2], rest)
    elif name == "srun":
        while rest and rest[0] not in _PYTHON:
            rest.pop(0)
        name, *rest = rest or [""]
    if name not in _PYTHON and not ranks:
        return None
    if rest[:1] == ["-m"]:
        rest[:2] = [f"{rest[1].replace('.', '/')}.py"]
    if not rest or not (ROOT / rest[0]).is_file() or not rest[0].endswith(".py"):
        return None
    return Program(rest[0], rest[1:], ranks, env)


def _launched(launcher: str, arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Return the number of processes, and the program with its arguments."""
    parser = argparse.ArgumentParser(prog=launcher, exit_on_error=False)
    numbers = ("--world_size", "--node_rank", "--base_rank", "--master_port")
    if launcher == "composer":
        parser.add_argument("-n", "--nproc", default="1")
    else:
        parser.add_argument("--nproc_per_node", "--nproc-per-node", dest="nproc", default="1")
        numbers += ("--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--rdzv_id", "--rdzv-backend", "--rdzv-endpoint")
    for name in (*numbers, "--master_addr"):
        parser.add_argument(name)
    parser.add_argument("program", nargs=argparse.REMAINDER)
    args = parser.parse_args(arguments)
    return int(args.nproc), args.program


def run_program(program: Program, folder: Path, timeout: float = 120) -> Ended:
    """Run a program in a folder without input, and wait until it has ended."""
    ends = ends_of_ranks(_run, max(program.ranks, 1), program, folder, timeout=timeout)
    return Ended(max((end.code for end in ends), key=abs), "\n".join(end.output for end in ends))


def _run(program: Program, folder: Path) -> int:
    os.chdir(folder)
    if not program.ranks:
        for name in _RANK_VARIABLES:
            del os.environ[name]
    os.environ.update(program.env)
    sys.path[:0] = filter(None, program.env.get("PYTHONPATH", "").split(":"))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.argv[:] = [program.script, *program.arguments]
    try:
        with _verified_here() if program.script == EXPORT else contextlib.nullcontext():
            runpy.run_path(program.script, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


@contextlib.contextmanager
def _verified_here() -> Iterator[None]:
    """Verify an export in the process that writes it, because another process would have to import torch."""
    from tests.helpers.verify_here import verify_here

    with patch("train.export.export.subprocess.run", verify_here):
        yield


def run_shell(text: str, folder: Path, timeout: float = 120) -> Ended:
    """Run a command in bash, with the programs of the environment first on the PATH."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=_env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout or None,
        check=False,
    )
    return Ended(done.returncode, done.stdout)


def _env() -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **VARIABLES}


VARIABLES = {"WEIGHTS": "weights", "DATA": "data.jsonl", "HOST": "127.0.0.1", "N": "0"}
"""Variables in the commands of the documentation that the reader must set."""


def refused_arguments(programs: Sequence[Program]) -> list[str | None]:
    """Return the error about the arguments of each program, or None. Only the argument parser and the config reader of
    the program run."""
    return run_ranks(_refusals, 1, list(programs))[0]


class _Parsed(BaseException):
    """Ends a program when its arguments have been parsed."""


def _refusals(programs: list[Program]) -> list[str | None]:
    def parse(name: str) -> Callable[..., None]:
        original = getattr(argparse.ArgumentParser, name)

        def parse_alone(*args: Any, **kwargs: Any) -> None:
            raise _Parsed(original(*args, **kwargs))

        return parse_alone

    os.chdir(ROOT)
    for name in ("parse_args", "parse_intermixed_args"):
        setattr(argparse.ArgumentParser, name, parse(name))
    return [_refusal(program) for program in programs]


def _refusal_of_curation(config: str) -> str | None:
    from data.curation.config import read_config

    read_config(yaml.safe_load(Path(config).read_text("utf-8")))
    return None


def _refusal(program: Program) -> str | None:
    output, unparsed = io.StringIO(), f"{program.script} does not parse arguments"
    try:
        if program.script == "train.py" and program.arguments[0].startswith("--"):
            return None if program.arguments[0] in ("--help", "--explain", "--schema", "--keys") else "no such flag"
        if program.script == "train.py":
            _read_config([word for word in program.arguments if not word.startswith("--")])
        else:
            sys.argv[:] = [program.script, *program.arguments]
            with contextlib.redirect_stderr(output):
                runpy.run_path(program.script, run_name="__main__")
            return unparsed
    except _Parsed as parsed:
        args = parsed.args[0]
        if program.script == "scripts/curate.py":
            return _refusal_of_curation(args.config)
        return _refusal(Program("train.py", [args.config, *args.overrides])) if getattr(args, "config", None) else None
    except SystemExit as end:
        if end.code:
            return output.getvalue()
        return None if {"-h", "--help"} & set(program.arguments) else unparsed
    except ConfigError as error:
        return str(error)
    return None


def _read_config(arguments: list[str]) -> None:
    # The reader of a page has weights that this machine does not have. Here the preset sets the keys of the model.
    given = [word for word in arguments[1:] if not word.startswith("model.pretrained_model_name_or_path=")]
    load_config("yamls/finetune/dbrx.yaml" if arguments[0] == "CONFIG" else arguments[0], given)

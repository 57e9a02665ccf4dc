"""Runs the commands of the example. Each command is run once, and its output is recorded."""

import json
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Protocol

from data.base.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
WIDTH = 100
"""Maximum line width of a command on the page. Longer commands continue on the next line."""

_UNQUOTED = re.compile(r"[\w@%+=:,./-]+")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Process(Protocol):
    """A running command."""

    def wait(self) -> int: ...

    def terminate(self) -> None: ...


@dataclass(frozen=True)
class Output:
    """A command that has ended, with its complete output."""

    command: str
    text: str
    seconds: float


class Commands:
    """Runs commands in the repository's root.

    The output of a command is stored in `folder` as NAME.json. A later call with the same name and the same command
    returns the stored output, so the page can be written again without training again. With in_forks, Python scripts
    run in forks of this process, so the large libraries are imported only once.
    """

    def __init__(self, folder: Path, *, in_forks: bool = False) -> None:
        self.folder, self.in_forks = folder, in_forks
        folder.mkdir(parents=True, exist_ok=True)
        if in_forks:
            import composer  # noqa: F401
            import transformers  # noqa: F401

    def run(self, name: str, *words: str) -> Output:
        """Run a command, or return its stored output. Raises ConfigError if the command fails; the message contains the
        end of the output."""
        command, kept, log = quoted(words), self.folder / f"{name}.json", self.folder / f"{name}.log"
        if kept.exists():
            output = Output(**json.loads(kept.read_text("utf-8")))
            if output.command == command:
                return output
        print(f"$ {command}", flush=True)
        started = time.monotonic()
        with log.open("wb") as file:
            code = self.start(words, file).wait()
        text = plain(log.read_text("utf-8", errors="replace"))
        if code:
            raise ConfigError(f"`{command}` failed with exit code {code}:\n{text[-2000:]}")
        output = Output(command, text, time.monotonic() - started)
        kept.write_text(json.dumps(asdict(output)), encoding="utf-8")
        return output

    def start(self, words: Sequence[str], file: IO[bytes], path: Path | None = None) -> Process:
        """Start a command that writes to the file. `path` is a folder that is added to the end of Python's import
        path."""
        program = Path(sys.executable).parent / words[0]
        if not self.in_forks:
            environment = dict(os.environ) | ({"PYTHONPATH": str(path)} if path is not None else {})
            return subprocess.Popen(
                [str(program), *words[1:]], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment
            )
        script = [str(ROOT / words[1]), *words[2:]] if words[0] == "python" else [str(program), *words[1:]]
        sys.stdout.flush()
        return _Fork(script, file, path)


class _Fork:
    def __init__(self, script: Sequence[str], file: IO[bytes], path: Path | None) -> None:
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_run_script, args=(script, file.fileno(), path))
        self._process.start()

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


def _run_script(script: Sequence[str], output: int, path: Path | None) -> None:
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.chdir(ROOT)
    sys.argv = list(script)
    sys.path[0:0] = [str(ROOT)]
    if path is not None:
        sys.path.append(str(path))
    runpy.run_path(script[0], run_name="__main__")


def quoted(words: Sequence[str]) -> str:
    """Return the words as a command line for bash. A long command continues on further lines."""
    lines = [""]
    for word in map(_quoted, words):
        if len(lines[-1]) + len(word) > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def _quoted(word: str) -> str:
    if _UNQUOTED.fullmatch(word):
        return word
    if "\n" in word or "'" in word:
        escaped = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        return f"$'{escaped}'"
    return f"'{word}'"


def plain(text: str) -> str:
    """Return the text without colors, progress bars, and paths of this machine."""
    text = _ANSI.sub("", text).replace(f"{ROOT}/", "").replace(str(Path.home()), "~")
    lines = [line.rpartition("\r")[2].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join(lines)


def stop(process: Process) -> None:
    """Terminate a server and wait until it has ended."""
    with suppress(ProcessLookupError):
        process.terminate()
    process.wait()

"""Serves the exported model with `transformers serve`, and sends requests to the server."""

import importlib.util
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError
from scripts.dev.example.commands import ROOT, Commands, quoted, stop

PACKAGES = ROOT / ".venv" / "serve"
"""Packages that only `transformers serve` needs, installed by `make .venv/serve`."""
START_SECONDS = 120


@contextmanager
def serving(commands: Commands, folder: Path, port: int) -> Iterator[tuple[str, str]]:
    """Start a server for the folder. Yields the command and the URL of the server. The server is stopped when
    the context ends.

    Raises ConfigError if the packages of the server are not installed, or if the server does not start.
    """
    installed = importlib.util.find_spec("openai") is not None
    if not installed and not PACKAGES.is_dir():
        raise ConfigError("`transformers serve` needs the package openai: run `make .venv/serve`")
    words = ["transformers", "serve", str(folder), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    log, url = commands.folder / "serve.log", f"http://127.0.0.1:{port}"
    print(f"$ {quoted(words)}", flush=True)
    with log.open("wb") as file:
        process = commands.start(words, file, None if installed else PACKAGES)
        try:
            _wait(url, log)
            yield quoted(words), url
        finally:
            stop(process)


def _wait(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if get(f"{url}/health")["status"] == "ok":
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise ConfigError(f"the server did not start within {START_SECONDS} s:\n{log.read_text('utf-8')[-2000:]}")


def get(address: str | urllib.request.Request) -> dict[str, Any]:
    """Return the JSON of the server's response."""
    with urllib.request.urlopen(address, timeout=60) as response:
        return json.load(response)


def completion_request(folder: Path, prompt: str) -> str:
    """Return the JSON of a request to complete a prompt. The exported generation config selects greedy decoding."""
    return json.dumps({"model": str(folder), "prompt": prompt, "max_tokens": 40})


def complete(url: str, folder: Path, prompt: str) -> dict[str, Any]:
    """Return the complete response of the server for a prompt."""
    body, headers = completion_request(folder, prompt).encode(), {"Content-Type": "application/json"}
    return get(urllib.request.Request(f"{url}/v1/completions", body, headers))

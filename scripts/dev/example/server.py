"""The exported model behind `transformers serve`, asked over HTTP."""

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
"""What `transformers serve` imports and no other part of Dropless does: `make .venv/serve`."""
START_SECONDS = 120


@contextmanager
def serving(commands: Commands, folder: Path, port: int) -> Iterator[tuple[str, str]]:
    """The command that serves the folder, and the server's URL. The server is stopped at the end.

    Raises ConfigError when the server's packages are not installed, or when it does not start.
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
    """The JSON that the server returns."""
    with urllib.request.urlopen(address, timeout=60) as response:
        return json.load(response)


def completion_request(folder: Path, prompt: str) -> str:
    """The JSON that asks the server to continue a prompt. The exported generation_config.json makes this greedy."""
    return json.dumps({"model": str(folder), "prompt": prompt, "max_tokens": 40})


def complete(url: str, folder: Path, prompt: str) -> dict[str, Any]:
    """The server's whole answer to a prompt."""
    body, headers = completion_request(folder, prompt).encode(), {"Content-Type": "application/json"}
    return get(urllib.request.Request(f"{url}/v1/completions", body, headers))

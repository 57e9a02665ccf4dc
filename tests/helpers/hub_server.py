"""A Hugging Face hub on localhost that serves datasets and models."""

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from data.hub import reach


@dataclass
class Repository:
    files: Mapping[str, bytes]
    gated: bool = False
    """Whether requests without a token may only list the files."""
    revisions: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        listed = [(name, hashlib.sha1(content).hexdigest()) for name, content in sorted(self.files.items())]
        return hashlib.sha1(json.dumps(listed).encode()).hexdigest()


@dataclass
class Hub:
    """The state of the server, which tests inspect and change."""

    repositories: dict[str, Repository]
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    """METHOD PATH of each request, in order."""
    withheld: set[str] = field(default_factory=set)
    """Files whose content is refused."""

    def downloaded(self) -> list[str]:
        """Names of the files whose content was sent."""
        return sorted(
            path.split("/resolve/")[1].partition("/")[2] for path in self.requests if path.startswith("GET /d")
        )


def set_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Set the values that HF_ENDPOINT sets when huggingface-hub is imported. Version 0.x has a copy in a second
    module."""
    from huggingface_hub import constants, file_download

    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def close_sessions() -> None:
    """Close persistent connections of huggingface-hub 1.x and 0.x."""
    from huggingface_hub import utils

    (utils.close_session if hasattr(utils, "close_session") else utils.reset_sessions)()


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Serve until the context ends. After that, connections are refused."""
    hub = Hub(repositories)

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if path == "/":
            return self._send(200)
        # Addresses of models and datasets differ only in the kind.
        path = path.replace("/api/models/", "/api/datasets/")
        if "/resolve/" in path and not path.startswith("/datasets/"):
            path = f"/datasets{path}"
        name = next((name for name in self.hub.repositories if f"/datasets/{name}/" in f"{path}/"), None)
        if name is None:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        rest = path.split(f"/datasets/{name}", 1)[1].strip("/")
        return self._api(name, rest) if path.startswith("/api/") else self._file(name, rest)

    def _api(self, name: str, rest: str) -> None:
        repository = self.hub.repositories[name]
        if rest == "auth-check":
            return self._refuse_gated() if self._is_closed(repository) else self._send(200, body=b"{}")
        kind, _, revision = rest.partition("/")
        revision = revision.split("/")[0] or "main"
        if revision not in (*repository.revisions, repository.commit):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        if kind == "tree":
            tree = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in repository.files.items()
            ]
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())
        files = [{"rfilename": file, "size": len(content)} for file, content in repository.files.items()]
        gated = "manual" if repository.gated else False
        info = {"id": name, "sha": repository.commit, "siblings": files, "gated": gated, "private": False, "tags": []}
        return self._send(200, {"Content-Type": "application/json"}, json.dumps(info).encode())

    def _file(self, name: str, rest: str) -> None:
        """resolve/REVISION/FILE"""
        repository = self.hub.repositories[name]
        if self._is_closed(repository):
            return self._refuse_gated()
        file = rest.removeprefix("resolve/").partition("/")[2]
        if file not in repository.files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.commit})
        content = repository.files[file]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": repository.commit}
        if file in self.hub.withheld and self.command == "GET":
            return self._send(403)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(200, headers, content)
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._send(206, headers, content[start:stop])

    def _is_closed(self, repository: Repository) -> bool:
        return repository.gated and "Authorization" not in self.headers

    def _refuse_gated(self) -> None:
        self._send(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this dataset is restricted."})

    def _send(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def use_hub(monkeypatch, endpoint: str, home: Path, offline: bool = False) -> None:
    """Set the values that HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE set when the library is imported."""
    import datasets
    from huggingface_hub import constants

    set_endpoint(monkeypatch, endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    if (hub := sys.modules.get("transformers.utils.hub")) is not None:  # only in transformers 4
        monkeypatch.setattr(hub, "TRANSFORMERS_CACHE", str(home / "hub"), raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    reach._why_silent.cache_clear()
    close_sessions()

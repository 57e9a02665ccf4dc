"""S3 on loopback: moto's server, in this process, and what goes wrong with it."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Fault:
    """What happens to requests of a method whose path contains a text."""

    method: str
    path: str
    times: int
    """To how many of them; the later ones are answered."""
    kind: str
    """error (500), denied (403), reset (the connection ends), cut (half of the body), or slow (a second)."""


@dataclass
class S3:
    """What a test looks at and changes."""

    client: Any
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of those that were answered."""

    def keys(self, bucket: str) -> list[str]:
        return [item["Key"] for item in self.client.list_objects_v2(Bucket=bucket).get("Contents", [])]


@contextmanager
def serve() -> Iterator[S3]:
    """With a client, and the environment in which boto3 finds the server."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    storage = S3(None)
    app = _Faulty(DomainDispatcherApplication(create_backend_app), storage)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.delenv("AWS_PROFILE", raising=False)
        storage.client = boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
        try:
            yield storage
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Faulty:
    def __init__(self, app: Callable[..., Iterable[bytes]], storage: S3) -> None:
        self.app, self.storage, self.lock = app, storage, threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self.lock:
            fault = next((each for each in self.storage.faults if _meets(each, method, path)), None)
            if fault is not None:
                fault.times -= 1
        kind = fault.kind if fault is not None else ""
        if kind in ("error", "denied"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("500 Internal Server Error" if kind == "error" else "403 Forbidden", [])
            return [b""]
        if kind == "reset":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return [b""]
        if kind == "slow":
            time.sleep(1.0)
        answer = list(self.app(environ, start_response))
        self.storage.requests.append((method, path))
        return [b"".join(answer)[: sum(map(len, answer)) // 2]] if kind == "cut" else answer


def _meets(fault: Fault, method: str, path: str) -> bool:
    return fault.times > 0 and fault.method == method and fault.path in path

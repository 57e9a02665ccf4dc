"""S3 on localhost: moto's server in this process, with faults."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.helpers.store_faults import Fault, take_fault


@dataclass
class S3:
    """The state of the server, which tests inspect and change."""

    client: Any
    faults: list[Fault] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables that make boto3 use the server."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of the answered requests."""
    n_sent: int = 0
    """Number of bytes in the answers to GET requests."""

    def keys(self, bucket: str) -> list[str]:
        return [item["Key"] for item in self.client.list_objects_v2(Bucket=bucket).get("Contents", [])]


@contextmanager
def serve() -> Iterator[S3]:
    """Serve in this context. Yields the server's state with a client and the environment variables."""
    import boto3
    from moto.moto_api._internal import moto_api_backend
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto_api_backend.reset()  # left by an earlier server in this process
    storage = S3(None)
    app = _Faulty(DomainDispatcherApplication(create_backend_app), storage)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        storage.environment |= {
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }
        for name, value in storage.environment.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        storage.client = boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
        try:
            yield storage
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
            moto_api_backend.reset()  # other tests in this process have their own servers


class _Faulty:
    def __init__(self, app: Callable[..., Iterable[bytes]], storage: S3) -> None:
        self.app, self.storage = app, storage

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        fault = take_fault(self.storage.faults, method, path)
        kind = fault.kind if fault is not None else ""
        if kind in ("error", "denied"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("500 Internal Server Error" if kind == "error" else "403 Forbidden", [])
            return [b""]
        if kind == "reset":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return [b""]
        if kind == "slow":
            assert fault is not None
            time.sleep(fault.seconds)
        answer = list(self.app(environ, start_response))
        self.storage.requests.append((method, path))
        self.storage.n_sent += sum(map(len, answer)) if method == "GET" else 0
        return [b"".join(answer)[: sum(map(len, answer)) // 2]] if kind == "cut" else answer

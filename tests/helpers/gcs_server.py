"""Google Cloud Storage on localhost: objects with generations, preconditions, checksums and resumable uploads."""

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

from tests.helpers.store_faults import Fault, take_fault


@dataclass
class Storage:
    """The state of the server, which tests inspect and change."""

    buckets: dict[str, dict[str, bytes]]
    """The content of each object in each bucket."""
    endpoint: str = ""
    denied: bool = False
    """Whether every request is denied."""
    uploaded: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    generations: dict[tuple[str, str], int] = field(default_factory=dict)
    """Number of writes by (bucket, object)."""
    n_sent: int = 0
    """Number of bytes of objects that were sent."""
    sessions: dict[str, tuple[str, str, bytes]] = field(default_factory=dict)
    """Resumable uploads: bucket, object, received data."""


@contextmanager
def serve(storage: Storage) -> Iterator[Storage]:
    class Handler(_Handler):
        pass

    Handler.storage = storage
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    storage.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield storage
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    storage: Storage
    protocol_version = "HTTP/1.1"
    cut = False

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self._fails():
            return None
        url = urlsplit(self.path)
        bucket, name, query = self._place()
        objects = self.storage.buckets.get(bucket)
        if objects is None:
            return self._send(404)
        if name is not None:
            content = objects.get(name)
            if content is None:
                return self._send(404)
            if "/download/" in url.path or query.get("alt") == "media":
                if query.get("ifGenerationMatch") not in (None, str(self._generation(bucket, name))):
                    return self._send(412)
                return self._send_content(content)
            return self._send_json(self._about(bucket, name))
        if not url.path.endswith("/o"):
            return self._send_json({"kind": "storage#bucket", "name": bucket})
        prefix, deep = query.get("prefix", ""), "delimiter" not in query
        names = [name for name in objects if name.startswith(prefix) and (deep or "/" not in name[len(prefix) :])]
        return self._send_json({"items": [self._about(bucket, name) for name in sorted(names)]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._fails():
            return None
        bucket, _, query = self._place()
        if bucket not in self.storage.buckets:
            return self._send(404)
        if query["uploadType"] == "resumable":
            session = str(len(self.storage.sessions))
            self.storage.sessions[session] = bucket, json.loads(body)["name"], b""
            place = f"{self.storage.endpoint}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={session}"
            return self._send(200, location=place)
        parts: Any = message_from_bytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\n\n" + body)
        about, content = (part.get_payload(decode=True) for part in parts.get_payload())
        return self._write(bucket, json.loads(about)["name"], content, query, json.loads(about).get("crc32c"))

    def do_PUT(self) -> None:
        """Receive one part of a resumable upload."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._fails():
            return None
        _, _, query = self._place()
        bucket, name, before = self.storage.sessions[query["upload_id"]]
        total = self.headers["Content-Range"].rpartition("/")[2]
        content = before + body
        self.storage.sessions[query["upload_id"]] = bucket, name, content
        if total == "*" or len(content) < int(total):
            return self._send(308, received=f"bytes=0-{len(content) - 1}")
        return self._write(bucket, name, content, query, None)

    def do_DELETE(self) -> None:
        if self._fails():
            return None
        bucket, name, _ = self._place()
        if name is None or self.storage.buckets.get(bucket, {}).pop(name, None) is None:
            return self._send(404)
        self.storage.deleted.append(name)
        return self._send(204)

    def _fails(self) -> bool:
        """Answer the request with a fault, if there is one. Returns whether there was one."""
        fault = take_fault(self.storage.faults, self.command, unquote(self.path))
        if self.storage.denied or (fault is not None and fault.kind == "denied"):
            self._send(403)
        elif fault is not None and fault.kind == "error":
            self._send(500)
        elif fault is not None and fault.kind == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.cut = fault is not None and fault.kind == "cut"
            if fault is not None and fault.kind == "slow":
                time.sleep(fault.seconds)
            return False
        return True

    def _place(self) -> tuple[str, str | None, dict[str, str]]:
        """Parse the path into bucket, object and query."""
        url = urlsplit(self.path)
        found = re.search(r"/b/([^/]+)(?:/o(?:/(.+))?)?$", url.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if found is None:
            return "", None, query
        return found[1], unquote(found[2]) if found[2] is not None else None, query

    def _write(self, bucket: str, name: str, content: bytes, query: dict[str, str], checksum: str | None) -> None:
        there = self._generation(bucket, name) if name in self.storage.buckets[bucket] else 0
        if query.get("ifGenerationMatch") not in (None, str(there)):
            return self._send(412)
        if checksum not in (None, _crc32c(content)):
            return self._send(400)
        self.storage.buckets[bucket][name] = content
        self.storage.generations[bucket, name] = self._generation(bucket, name) + 1
        self.storage.uploaded.append(name)
        return self._send_json(self._about(bucket, name))

    def _generation(self, bucket: str, name: str) -> int:
        return self.storage.generations.get((bucket, name), 1)

    def _about(self, bucket: str, name: str) -> dict[str, str]:
        content = self.storage.buckets[bucket][name]
        generation = str(self._generation(bucket, name))
        return {"name": name, "size": str(len(content)), "generation": generation, "crc32c": _crc32c(content)}

    def _send_content(self, content: bytes) -> None:
        """Send the content, or the requested range of it."""
        wanted, total = self.headers.get("Range"), len(content)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        part = content[int(found[1]) : int(found[2] or total) + 1] if found is not None else content
        self.storage.n_sent += len(part)
        if found is None:
            return self._send(200, content, checksum=_crc32c(content))
        place = f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{total}"
        return self._send(206, part, checksum=_crc32c(content), content_range=place) if part else self._send(416)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), kind="application/json")

    def _send(
        self,
        status: int,
        body: bytes = b"",
        *,
        kind: str = "application/octet-stream",
        checksum: str | None = None,
        location: str | None = None,
        received: str | None = None,
        content_range: str | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        hash = checksum and f"crc32c={checksum}"
        headers = {"X-Goog-Hash": hash, "Location": location, "Range": received, "Content-Range": content_range}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.cut:
            self.close_connection = True
        self.wfile.write(body[: len(body) // 2] if self.cut else body)


def _crc32c(content: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()

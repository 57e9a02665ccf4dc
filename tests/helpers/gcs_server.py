"""Google Cloud Storage on loopback, as far as small objects go."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Storage:
    """What a test looks at and changes."""

    buckets: dict[str, dict[str, bytes]]
    """Bucket -> object -> content."""
    endpoint: str = ""
    denied: bool = False
    """Everything is refused."""
    uploaded: list[str] = field(default_factory=list)


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

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        found = re.search(r"/b/([^/]+)(?:/o(?:/(.+))?)?$", url.path)
        objects = self.storage.buckets.get(found[1]) if found else None
        if self.storage.denied:
            return self._send(403)
        if found is None or objects is None:
            return self._send(404)
        if found[2] is not None:
            content = objects.get(unquote(found[2]))
            return self._send(404) if content is None else self._send(200, content)
        if not url.path.endswith("/o"):
            return self._send_json({"kind": "storage#bucket", "name": found[1]})
        prefix = parse_qs(url.query)["prefix"][0]
        names = [name for name in objects if name.startswith(prefix) and "/" not in name.removeprefix(prefix)]
        return self._send_json({"items": [{"name": name, "size": str(len(objects[name]))} for name in names]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.storage.denied:
            return self._send(403)
        parts: Any = message_from_bytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\n\n" + body)
        about, content = (part.get_payload(decode=True) for part in parts.get_payload())
        name = json.loads(about)["name"]
        bucket = urlsplit(self.path).path.split("/b/")[1].split("/")[0]
        self.storage.buckets[bucket][name] = content
        self.storage.uploaded.append(name)
        return self._send_json({"name": name, "size": str(len(content))})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, body: bytes = b"", kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

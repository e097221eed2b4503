"""A server that lists models and answers each POST with a fixed response."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

STREAM = b'data: {"choices":[{"delta":{"content":"a b"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class AnsweringServer(http.server.BaseHTTPRequestHandler):
    """Answers each POST with the next of `posts`, repeating the last one, and lists `models`."""

    protocol_version = "HTTP/1.1"
    posts: ClassVar[list[tuple[int, bytes]]] = []
    models: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[dict[str, Any]]] = []
    paths: ClassVar[list[str]] = []
    flush: ClassVar[int] = 200

    def do_GET(self) -> None:
        listed = self.path == "/v1/models" and self.models
        self._answer(200 if listed else 404, json.dumps({"data": self.models}).encode() if listed else b"{}")

    def do_POST(self) -> None:
        self.paths.append(self.path)
        if self.path == "/flush_cache":
            self._answer(self.flush, b"not now")
            return
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(*(self.posts.pop(0) if len(self.posts) > 1 else self.posts[0]))

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream" if body[:4] == b"data" else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def answering(*posts: tuple[int, bytes], models: Sequence[str | dict[str, Any]] = ()) -> Iterator[str]:
    AnsweringServer.posts, AnsweringServer.asked, AnsweringServer.paths = list(posts), [], []
    AnsweringServer.models = [each if isinstance(each, dict) else {"id": each} for each in models]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), AnsweringServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()

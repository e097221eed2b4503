"""Cookies and response hooks, such as that of digest authentication, of a user's session."""

from __future__ import annotations

from collections.abc import Callable
from email.message import Message
from io import BytesIO
from types import SimpleNamespace
from typing import Any

from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter
from requests.cookies import extract_cookies_to_jar
from requests.hooks import dispatch_hook
from urllib3 import HTTPHeaderDict, HTTPResponse

from asr_load.http.head import Head

Send = Callable[[PreparedRequest], tuple[Head, bytes]]
"""Sends a request. Returns the head and, unless the status is 200, the body of its response, still compressed."""


def has_hooks(client: Session, prepared: PreparedRequest | None = None) -> bool:
    return bool(client.hooks["response"] or (prepared is not None and prepared.hooks["response"]))


def keep_cookies(client: Session, prepared: PreparedRequest, head: Head) -> None:
    """Store the response's cookies in the session's jar."""
    if head.get("set-cookie"):
        extract_cookies_to_jar(client.cookies, prepared, _raw(head))


def send_with_hooks(prepared: PreparedRequest, send: Send) -> None:
    """Send a request and pass its response to its hooks, which may send other requests in the same way."""
    dispatch_hook("response", prepared.hooks, _Adapter(send).send(prepared))


class _Adapter(HTTPAdapter):
    """Sends requests of hooks in the same way as all others."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    def send(self, request: PreparedRequest, *_: Any, **__: Any) -> Response:
        return self.build_response(request, _raw(*self._send(request)))


def _raw(head: Head, body: bytes = b"") -> HTTPResponse:
    fields = Message()
    for name, value in head.fields:
        fields[name] = value
    return HTTPResponse(
        BytesIO(body),
        HTTPHeaderDict(head.fields),
        head.status,
        reason=head.reason,
        preload_content=False,
        original_response=SimpleNamespace(msg=fields, isclosed=lambda: False, close=lambda: None),  # type: ignore[arg-type]
    )

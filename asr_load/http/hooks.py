"""Features of requests for users whose session has more than headers: cookies, and hooks such as that of digest
authentication."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from requests import PreparedRequest, Response, Session
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.cookies import MockRequest, MockResponse
from requests.hooks import dispatch_hook
from urllib3 import HTTPResponse

from asr_load.http.head import FinalHead

Send = Callable[[PreparedRequest], FinalHead]


def has_hooks(client: Session, prepared: PreparedRequest | None = None) -> bool:
    return bool(client.hooks["response"] or (prepared is not None and prepared.hooks["response"]))


def keep_cookies(client: Session, prepared: PreparedRequest, head: FinalHead) -> None:
    """Store the response's cookies in the session's jar."""
    if "set-cookie" in head.headers:
        cookies: Any = client.cookies
        cookies.extract_cookies(MockResponse(head.headers), MockRequest(prepared))


def call_hooks(prepared: PreparedRequest, head: FinalHead, send: Send) -> Response:
    """Pass a response to the hooks. Returns it, or the response to a request that a hook sent instead. Keep the
    returned object while reading its head."""
    response: Response = dispatch_hook("response", prepared.hooks, _Adapter(send).respond(prepared, head))
    return response


class _Adapter(BaseAdapter):
    """Lets a hook send another request in the same way as all others."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send
        self._build: Any = HTTPAdapter().build_response

    def send(self, request: PreparedRequest, *_: Any, **__: Any) -> Response:
        return self.respond(request, self._send(request))

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def respond(self, prepared: PreparedRequest, head: FinalHead) -> Response:
        """Make a Response of requests from a head."""
        raw = HTTPResponse(
            head,
            headers=dict(head.headers),
            status=head.status,
            reason=head.reason,
            preload_content=False,
            decode_content=False,
            original_response=head,
            request_method="POST",
        )
        response: Response = self._build(prepared, raw)
        vars(response)["connection"] = self
        return response

"""The ASGI application and its routes."""

import hmac
import time
import uuid
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from asr_server.engine import Audio, RequestError
from asr_server.exchange import REDIRECTED, Exchange, Service, flat_error
from asr_server.faults import FaultPlan
from asr_server.realtime import Dialect, RealtimeEndpoint
from asr_server.sglang import SpeechRequest, check_max_tokens, parse_chat

MAX_BODY_BYTES = 256 << 20  # an hour and a half of speech in base64
_OPEN_PATHS = {"/health", "/metrics"}
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def build_app(
    service: Service, model: str, faults: FaultPlan, api_key: str | None, realtime: Dialect | None = None
) -> ASGIApp:
    """Build the ASGI application. With an `api_key`, all paths except health and metrics require it as a bearer token.
    `realtime` is the dialect of sessions; None: no sessions."""

    async def models(_: Request) -> Response:
        entry = {"id": model, "object": "model", "created": int(time.time()), "owned_by": "asr_server", "root": model}
        return JSONResponse({"object": "list", "data": [entry]})

    async def health(_: Request) -> Response:
        return Response()

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type=_METRICS_TYPE)

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return flat_error(error.detail, error.status_code)

    routes: list[BaseRoute] = [Route("/v1/models", models), Route("/health", health), Route("/metrics", metrics)]
    for prefix, plan in (("", faults), (REDIRECTED, None)):
        for path, parse in (("/v1/chat/completions", _read_chat), ("/v1/audio/transcriptions", _read_form)):
            endpoint = _SpeechEndpoint(service, plan, parse, chat=parse is _read_chat)
            routes.append(Route(prefix + path, endpoint, methods=["POST"]))
    if realtime is not None:
        routes.append(WebSocketRoute("/v1/realtime", RealtimeEndpoint(service, faults, model, realtime)))
    app = Starlette(routes=routes, exception_handlers={HTTPException: http_error})
    return _Authorised(app, api_key) if api_key else app


class _Authorised:
    """Accepts requests with the key; responds to all others like SGLang."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = b"Bearer " + api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if scope["path"] in _OPEN_PATHS or hmac.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            refusal = JSONResponse({"error": "Unauthorized"}, 401)
            await WebSocket(scope, receive, send).send_denial_response(refusal)
        else:
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)


class _SpeechEndpoint:
    """An ASGI application instead of a function, because responses write to the connection themselves."""

    def __init__(
        self,
        service: Service,
        faults: FaultPlan | None,
        parse: Callable[[Request], Awaitable[tuple[SpeechRequest, float]]],
        *,
        chat: bool,
    ) -> None:
        self._service = service
        self._faults = faults
        self._parse = parse
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._service.metrics.count(scope["path"])
        try:
            exchange = await self._begin(scope, receive, send)
        except RequestError as error:
            await flat_error(str(error), error.status)(scope, receive, send)
        except ClientDisconnect:
            pass
        else:
            await exchange.run()

    async def _begin(self, scope: Scope, receive: Receive, send: Send) -> Exchange:
        """Parse a request. A separate function, so that only the exchange holds the audio, which it releases."""
        http = Request(scope, _limited(scope, receive))
        fault = self._faults.choose(http.headers) if self._faults else None
        request, received_at = await self._parse(http)
        return Exchange(
            service=self._service,
            request=request,
            chat=self._chat,
            id=uuid.uuid4().hex,
            fault=fault,
            received_at=received_at,
            scope=scope,
            receive=receive,
            send=send,
        )


def _limited(scope: Scope, receive: Receive) -> Receive:
    """Limit a body to MAX_BODY_BYTES. Raises RequestError for a longer one, immediately if its Content-Length says
    so."""
    too_long = RequestError(f"The body has more than {MAX_BODY_BYTES} bytes.", 413)
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if int(length) > MAX_BODY_BYTES:
        raise too_long
    left = MAX_BODY_BYTES

    async def limited() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise too_long
        return message

    return limited


async def _read_chat(http: Request) -> tuple[SpeechRequest, float]:
    body = await http.body()
    received_at = time.perf_counter()
    return parse_chat(body), received_at


async def _read_form(http: Request) -> tuple[SpeechRequest, float]:
    if not http.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError("A transcription request must be multipart/form-data.")
    try:
        form = await http.form()
    except HTTPException as error:
        raise RequestError(f"The form cannot be read: {error.detail}") from None
    received_at = time.perf_counter()
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise RequestError("The form has no file.")

    def text(name: str, default: str) -> str:
        value = form.get(name)
        return value if isinstance(value, str) and value else default

    if (wanted := text("response_format", "json")) != "json":
        raise RequestError(f"response_format {wanted!r} is not supported; use json.")
    limit = text("max_completion_tokens", "") or text("max_tokens", "")
    try:
        max_tokens = check_max_tokens(int(limit) if limit else None)
    except ValueError:
        raise RequestError(f"max_tokens must be a whole number, got {limit!r}.") from None
    audio = Audio(await file.read(), file.filename or "file", base64=False)
    await form.close()
    stream = text("stream", "false").lower() in ("true", "1")
    return SpeechRequest(audio, text("model", "default"), stream, max_tokens), received_at

"""Ask a server for its models, version, start options and health."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import gevent

from asr_load.apis.api import MODELS
from asr_load.decode import Malformed, decode
from asr_load.errors import InputError
from asr_load.http.connection import Connection, SharedState, place_of
from asr_load.http.failure import Failure, words
from asr_load.http.response import Response
from asr_load.http.socket_reader import python
from asr_load.http.transport import Transport
from asr_load.stream.reader import ProtocolError
from asr_load.text import MAX_CHARS, SECRET, STRUCK, Intake

FLUSH = "/flush_cache"
PATHS = (MODELS, "/get_server_info", "/version")
"""Paths of OpenAI, SGLang and vLLM."""

PATIENCE_S = 2.0
"""Seconds to wait for a complete response: the server may be busy or down."""

MAX_RESPONSE_BYTES = 1 << 20
"""Bytes of a response after which the rest is not awaited."""

SERVER_DEPTH = 50
"""Maximum nesting of a response's JSON, less than that of run.json, which contains it."""

NUMBER_LIMIT = 1e18
"""Numbers from here on are dropped. Plausible numbers, such as bytes or times in nanoseconds, are smaller."""

NAME_CHARS = 200
"""Maximum length of a model's name; longer ones are ignored."""

NO_ANSWER = (OSError, Failure, ProtocolError)
"""Errors for a missing or unreadable response."""


def ask_server(host: str, headers: Mapping[str, str], intake: Intake, transport: Transport) -> dict[str, Any]:
    """The server's JSON responses by path, for those of PATHS that it has, without secrets."""
    greenlets = {path: gevent.spawn(_get, host + path, headers, transport) for path in PATHS}
    gevent.joinall(list(greenlets.values()), timeout=PATIENCE_S)
    gevent.killall(list(greenlets.values()))
    responses = {path: _cleaned(greenlet.value, intake) for path, greenlet in greenlets.items()}
    return {path: value for path, value in responses.items() if isinstance(value, (dict, list, str))}


def list_models(host: str, headers: Mapping[str, str], intake: Intake, transport: Transport) -> list[str]:
    """The names of the server's models; empty if it lists none. Raises InputError if it does not respond in time."""
    try:
        status, body = ask(host + MODELS, headers, transport)
    except NO_ANSWER as error:
        why = intake.line(words(error))
        raise InputError(f"{host} does not answer ({why}): check the address, and that the server runs") from None
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise InputError(f"{host} returned {status} for its list of models: check --api-key")
    try:
        return _listed({MODELS: _cleaned(decode(body, depth=SERVER_DEPTH), intake)}) if status == HTTPStatus.OK else []
    except Malformed:
        return []


def unlisted(model: str, responses: Mapping[str, Any]) -> str:
    """A sentence with the listed models, if the server lists models but not `model`; else empty.

    The model may still exist: a gateway, for example, does not list its aliases.
    """
    listed = _listed(responses)
    # The embedded server lists `default` and accepts any model.
    if not listed or "default" in listed or any(_names_it(name, model) for name in listed):
        return ""
    return f"the server does not list --model {model}, but {_names(listed)}"


def _names_it(listed: str, model: str) -> bool:
    """Whether a listed name matches a model: exactly, as a pattern, or apart from a tag or adapter (Ollama lists
    MODEL:latest, SGLang accepts BASE:ADAPTER)."""
    return fnmatchcase(model, _pattern(listed)) or listed.partition(":")[0] == model.partition(":")[0]


def _pattern(listed: str) -> str:
    """A pattern for fnmatch in which * is the only wildcard."""
    return listed.replace("[", "[[]").replace("?", "[?]")


def only_model(responses: Mapping[str, Any]) -> str:
    """The server's only model; empty if it lists no model. Raises InputError if it lists several."""
    # Skip adapters, which name the model that they belong to, and the patterns of a gateway.
    listed = _listed(responses, lambda entry: not entry.get("parent") and "*" not in str(entry["id"]))
    if len(listed) > 1 and "default" not in listed:
        raise InputError(f"the server has several models; choose one with --model: {_names(listed)}")
    return listed[0] if len(listed) == 1 else ""


def _listed(responses: Mapping[str, Any], wanted: Callable[[dict[str, Any]], bool] = bool) -> list[str]:
    listing = responses.get(MODELS)
    models = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(models, list):
        return []
    named = [entry for entry in models if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    return [entry["id"] for entry in named if wanted(entry) and 0 < len(entry["id"]) <= NAME_CHARS]


def _names(listed: list[str]) -> str:
    return ", ".join(listed[:5]) + (", …" if len(listed) > 5 else "")


def unready(host: str, headers: Mapping[str, str], intake: Intake, transport: Transport) -> str:
    """Why the server is not ready, in words; empty if it is ready: by /health or, without that, by any response to
    /v1/models."""
    for path in ("/health", MODELS):
        try:
            status, _ = ask(host + path, headers, transport)
        except NO_ANSWER as error:
            why = intake.line(words(error))
            return f"{why[:1].lower()}{why[1:]}"
        if status == HTTPStatus.OK:
            return ""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return f"{path} returned {status}"
    return ""


def flush_cache(host: str, headers: Mapping[str, str], intake: Intake, transport: Transport) -> None:
    """Flush SGLang's cache. Raises InputError if the server cannot do that."""
    try:
        status, body = ask(host + FLUSH, headers, transport, method="POST")
    except NO_ANSWER as error:
        raise InputError(f"--flush-cache: POST {FLUSH}: {intake.line(words(error))}") from None
    if status != HTTPStatus.OK:
        message = intake.line(body.decode(errors="replace"), 200)
        raise InputError(
            f"--flush-cache: POST {FLUSH} returned {status} {message}: only SGLang supports this, while it is idle"
        )


def _get(url: str, headers: Mapping[str, str], transport: Transport) -> Any:
    try:
        status, body = ask(url, headers, transport)
        return decode(body, depth=SERVER_DEPTH) if status == HTTPStatus.OK else None
    except Exception:  # whatever the reason, the server gave no usable response
        return None


def ask(
    url: str, headers: Mapping[str, str], transport: Transport, *, method: str = "GET", limit: int = MAX_RESPONSE_BYTES
) -> tuple[int, bytes]:
    """Send a request without a body. Returns the response's status and body, within PATIENCE_S in all; the rest of a
    body longer than `limit` bytes is not awaited. Raises the errors in NO_ANSWER."""
    connection = Connection(place_of(url), transport, SharedState())
    fields = headers if method == "GET" else {**headers, "Content-Length": "0"}
    _, _, path, query, _ = urlsplit(url)
    head = connection.request_head(method, f"{path}?{query}" if query else path, fields) + "\r\n"
    try:
        with gevent.Timeout(PATIENCE_S, False):  # type: ignore[arg-type] # False: it is not raised
            connection.open(PATIENCE_S)
            connection.send([head.encode("latin-1")], PATIENCE_S, lambda: False)
            with contextlib.closing(Response(connection.reads(python), PATIENCE_S)) as response:
                response.read_head()
                response.coding()  # a body that cannot be read need not be awaited
                response.wait_for_body(limit)
                return response.head.status, response.body()
    finally:
        connection.close()
    raise TimeoutError(f"no complete response within {PATIENCE_S:g} s")


def _cleaned(value: Any, intake: Intake) -> Any:
    match value:
        case int() | float() if abs(value) >= NUMBER_LIMIT:
            return None
        case str():
            return intake.line(value, MAX_CHARS)
        case list():
            return [_cleaned(item, intake) for item in value]
        case dict():
            return {
                intake.line(name): STRUCK if SECRET.search(name) and isinstance(item, str) else _cleaned(item, intake)
                for name, item in value.items()
            }
    return value

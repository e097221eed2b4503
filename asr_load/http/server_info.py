"""What a server says of itself: its models, its version, how it was started."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import gevent

from asr_load.decode import decode
from asr_load.errors import InputError
from asr_load.http.connection import Connection, Connections, place_of
from asr_load.http.failure import Failure, words
from asr_load.http.head import FinalHead
from asr_load.http.head_file import READ_BYTES, HeadFile
from asr_load.http.transport import Transport
from asr_load.http.turn import Turn
from asr_load.stream.coding import Decoded
from asr_load.stream.reader import ProtocolError
from asr_load.text import MAX_CHARS, STRUCK, Intake

MODELS, FLUSH = "/v1/models", "/flush_cache"
PATHS = (MODELS, "/get_server_info", "/version")
"""OpenAI's; SGLang's; vLLM's."""

PATIENCE_S = 2.0
"""For a whole answer: the server may be busy, or not there."""

LONGEST = 1 << 20
"""Bytes of an answer."""

SERVER_DEPTH = 50
"""Levels of an answer's JSON: run.json, which holds it, has more."""

LARGEST = 1e18
"""Of a number, which may be one of bytes or a time in nanoseconds. What is beyond is no number that can be shown."""

NAME_CHARS = 200
"""Of a model's name. A longer one is none that can be asked for, and none that is shown."""

NO_ANSWER = (OSError, HTTPException, Failure, ProtocolError)
"""What is raised where an answer does not come, or cannot be read."""

SECRET = re.compile(r"api_?key|secret|password|passwd|credential|authorization|(^|_)(auth|token|key)$", re.IGNORECASE)


def ask_server(host: str, headers: Mapping[str, str], intake: Intake, transport: Transport) -> dict[str, Any]:
    """The JSON that a server answers with, by path, for those of PATHS that it has; without what may be secret."""
    greenlets = {path: gevent.spawn(_get, host + path, headers, transport) for path in PATHS}
    gevent.joinall(list(greenlets.values()), timeout=PATIENCE_S)
    gevent.killall(list(greenlets.values()))
    said = {path: _taken_in(greenlet.value, intake) for path, greenlet in greenlets.items()}
    return {path: value for path, value in said.items() if isinstance(value, (dict, list, str))}


def unlisted(model: str, said: Mapping[str, Any]) -> str:
    """What a server lists in the place of `model`, as a sentence; empty where it lists it, or no model at all.

    It shows no more than that: a server may well have a model that it does not list, as a gateway has aliases.
    """
    listed = _listed(said)
    # The embedded server, which lists `default`, takes any.
    if not listed or "default" in listed or any(_names_it(each, model) for each in listed):
        return ""
    return f"the server does not list --model {model}, but {_names(listed)}"


def _names_it(listed: str, model: str) -> bool:
    """Whether an entry of a list stands for a model: itself, as a pattern, or with a tag or an adapter on either side,
    as Ollama lists MODEL:latest and SGLang takes BASE:ADAPTER."""
    return fnmatchcase(model, _pattern(listed)) or listed.partition(":")[0] == model.partition(":")[0]


def _pattern(listed: str) -> str:
    """With * as the only wildcard."""
    return listed.replace("[", "[[]").replace("?", "[?]")


def only_model(said: Mapping[str, Any]) -> str:
    """The one model that a server has; empty where it lists none. Raises InputError where it has several."""
    # Adapters name the model that they belong to, and a gateway's pattern is no model's name.
    listed = _listed(said, lambda each: not each.get("parent") and "*" not in str(each["id"]))
    if len(listed) > 1 and "default" not in listed:
        raise InputError(f"the server has several models: name one with --model: {_names(listed)}")
    return listed[0] if len(listed) == 1 else ""


def _listed(said: Mapping[str, Any], wanted: Callable[[dict[str, Any]], bool] = bool) -> list[str]:
    answer = said.get(MODELS)
    models = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(models, list):
        return []
    named = [each for each in models if isinstance(each, dict) and isinstance(each.get("id"), str) and wanted(each)]
    return [each["id"] for each in named if 0 < len(each["id"]) <= NAME_CHARS]


def _names(listed: list[str]) -> str:
    return ", ".join(listed[:5]) + (", …" if len(listed) > 5 else "")


def unready(host: str, headers: Mapping[str, str], intake: Intake, transport: Transport) -> str:
    """Why a server cannot be asked for transcripts yet, in words; empty when it says that it can: by /health, and where
    it has none by answering /v1/models at all."""
    for path in ("/health", MODELS):
        try:
            status, _ = _ask(host + path, headers, transport)
        except NO_ANSWER as error:
            why = intake.line(words(error))
            return f"{why[:1].lower()}{why[1:]}"
        if status == HTTPStatus.OK:
            return ""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return f"{path} is answered {status}"
    return ""


def flush_cache(host: str, headers: Mapping[str, str], intake: Intake, transport: Transport) -> None:
    """Let SGLang forget what it has in its cache. Raises InputError where that cannot be."""
    try:
        status, body = _ask(host + FLUSH, headers, transport, method="POST")
    except NO_ANSWER as error:
        raise InputError(f"--flush-cache: POST {FLUSH}: {intake.line(words(error))}") from None
    if status != HTTPStatus.OK:
        said = intake.line(body.decode(errors="replace"), 200)
        raise InputError(f"--flush-cache: POST {FLUSH} is answered {status} {said}: it is SGLang's, for an idle server")


def _get(url: str, headers: Mapping[str, str], transport: Transport) -> Any:
    try:
        status, body = _ask(url, headers, transport)
        return decode(body, depth=SERVER_DEPTH) if status == HTTPStatus.OK else None
    except Exception:  # it says nothing, in one of the many ways
        return None


def _ask(url: str, headers: Mapping[str, str], transport: Transport, method: str = "GET") -> tuple[int, bytes]:
    """The status and the body of what is there, within PATIENCE_S in all."""
    place = place_of(url)
    connection = Connection(place, transport, Connections())
    fields = {"Host": place.name, **(transport.proxy_headers if connection.target else {}), **headers}
    if method != "GET":
        fields["Content-Length"] = "0"
    lines = [f"{method} {connection.target}{urlsplit(url).path} HTTP/1.1"]
    lines += [f"{name}: {fields[name]}" for name in fields]

    def ask() -> tuple[int, bytes]:
        connection.open(PATIENCE_S)
        connection.send(["\r\n".join([*lines, "", ""]).encode("latin-1")], PATIENCE_S, lambda: False)
        head = FinalHead(HeadFile(connection.reads(None), PATIENCE_S), method=method)  # type: ignore[arg-type]
        head.begin()
        return head.status, _body(head)

    try:
        answer: tuple[int, bytes] | None = gevent.with_timeout(PATIENCE_S, ask, timeout_value=None)
    finally:
        connection.close()
    if answer is None:
        raise TimeoutError(f"no complete answer within {PATIENCE_S:g} s")
    return answer


def _body(head: FinalHead) -> bytes:
    coding, body, turn = Decoded.of(head.headers.get("content-encoding")), bytearray(), Turn()
    while len(body) < LONGEST and (data := head.read1(READ_BYTES)):
        body += data if coding is None else coding.piece(data)
        turn.give()
    return bytes(body)


def _taken_in(value: Any, intake: Intake) -> Any:
    match value:
        case int() | float() if abs(value) >= LARGEST:
            return None
        case str():
            return intake.line(value, MAX_CHARS)
        case list():
            return [_taken_in(each, intake) for each in value]
        case dict():
            return {
                intake.line(name): STRUCK if SECRET.search(name) and isinstance(each, str) else _taken_in(each, intake)
                for name, each in value.items()
            }
    return value

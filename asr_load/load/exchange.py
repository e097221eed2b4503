"""One request and its answer, from a connection to a record. Whatever happens, there is one record."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import gevent
import urllib3
from requests import PreparedRequest, Request, Response, Session
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import RequestException

from asr_load.load import kept
from asr_load.load.options import Limits
from asr_load.load.tap import CHUNKED, UNTIL_CLOSE, TapFile
from asr_load.load.wire import Wire
from asr_load.stream.reader import MAX_ERROR_CHARS, Answer, ProtocolError, http_error_message, shorten
from asr_load.stream.record import Record
from asr_load.stream.timing import latencies, seconds

READ_BYTES = 65536
ERROR_BYTES = 65536
WHOLE_BYTES = 16 << 20
"""Most of a body that is not streamed."""

SLICE_S = 2.0
"""How often an answer that is collected is looked at before its body has ended."""

END_GRACE = {True: 1.0, False: 5.0}
"""Seconds in which a body must end once its answer is complete: after its terminator, or after a finish_reason alone.

Reading on to the end is what keeps the connection; a server that never ends it must not hold the user."""


@dataclass(frozen=True)
class Outgoing:
    """A request that is ready to be sent: nothing is built after the clock has started."""

    url: str
    body: list[bytes | memoryview]
    """In pieces, as they are sent: the audio is never copied."""
    headers: dict[str, str]
    """Those that a user's requests have in common; others are `own_headers`."""
    clip: str
    reference: str
    audio_s: float
    seq: int
    user: int
    worker: int
    warmup: bool = False
    due: int | None = None
    """When it should have been sent (open loop), in perf_counter nanoseconds."""
    queued: bool = False
    """Whether it was due before any user was free."""
    own_headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Terms:
    """What all exchanges of a test share."""

    limits: Limits
    epoch_ns: int
    """What turns a perf_counter stamp into nanoseconds since the epoch."""
    secrets: tuple[str, ...]
    """Words to strike out of whatever a server says."""


@dataclass
class _Result:
    """How a request went, as far as it went."""

    answer: Answer = field(default_factory=Answer)
    outcome: str = "protocol"
    error: str | None = None
    status: int | None = None
    ended: int | None = None


class _HttpError(Exception):
    """An answer with another status than 200."""


def exchange(client: Session, wire: Wire, outgoing: Outgoing, terms: Terms) -> tuple[Record, BaseException | None]:
    """Send a request and read its answer. Returns its record and what the caller must raise on, if anything."""
    result = _Result()
    wire.reset()
    wire.stall = terms.limits.stall
    before = time.perf_counter_ns()
    reraise: BaseException | None = None
    time_limit = gevent.Timeout(terms.limits.total)
    time_limit.start()
    try:
        _send_and_read(client, wire, outgoing, terms.limits, result)
    except gevent.Timeout as error:
        if error is not time_limit:
            raise
        _fail(result, "timeout", f"no end after {terms.limits.total:g} s")
    except Exception as error:
        _fail(result, "protocol", f"{type(error).__name__}: {error}")
        reraise = error
    except BaseException as error:  # GreenletExit, as a rule: Locust ends its users so
        _fail(result, "unfinished", "cut off by the end of the test")
        reraise = error
    finally:
        time_limit.close()
        wire.drop()
    return _record(outgoing, wire, result, before, terms), reraise


def _send_and_read(client: Session, wire: Wire, outgoing: Outgoing, limits: Limits, result: _Result) -> None:
    try:
        try:
            _attempt(client, wire, outgoing, limits, result)
        except (RequestException, urllib3.exceptions.HTTPError) as error:
            # A server may close a kept-alive connection while it is idle, and that is only noticed now. Nothing of an
            # answer came, so it is no answer's failure; on a new connection it would be.
            if not (wire.reused and wire.headers is None and _classify(error)[0] == "cut"):
                raise
            _attempt(client, wire, outgoing, limits, result)
        result.outcome, result.error = result.answer.outcome(), result.answer.error
        if result.outcome == "cut":
            result.error = "the body ended without a finish_reason or [DONE]"
        elif result.outcome == "empty":
            result.error = "no text"
        elif result.outcome == "aborted":
            result.error = "finish_reason abort"
    except _HttpError as error:
        result.outcome, result.error = f"http_{result.status}", str(error)
    except ProtocolError as error:
        _fail(result, "protocol", str(error))
    except (RequestException, urllib3.exceptions.HTTPError) as error:
        _fail(result, *_classify(error))


def _fail(result: _Result, outcome: str, error: str) -> None:
    """Note what ended the exchange, unless the answer was complete before."""
    answer = result.answer
    if answer.said_its_end or answer.error is not None:
        result.outcome, result.error = answer.outcome(), answer.error
    else:
        result.outcome, result.error = outcome, error


def _attempt(client: Session, wire: Wire, outgoing: Outgoing, limits: Limits, result: _Result) -> None:
    prepared = _prepare(client, wire, outgoing)
    own = {**outgoing.own_headers, "Content-Length": str(sum(map(len, outgoing.body)))}
    connection = kept.connection_for(client, wire, prepared)
    if connection is None:
        prepared.headers.update(own)
        _ask_requests(client, wire, prepared, limits, result)
        return
    head = None
    try:
        head = kept.post(client, connection, wire, prepared, own)
        result.status = head.status
        if isinstance(head, kept.StreamHead) or _is_stream(head.status, head.headers):
            _read_stream(head, wire, result)
        else:
            response = kept.as_response(client, prepared, head)
            _read_whole(response, wire, result)
    finally:
        if head is None or head.will_close or not head.isclosed():
            connection.close()


def _ask_requests(client: Session, wire: Wire, prepared: PreparedRequest, limits: Limits, result: _Result) -> None:
    # Not client.post: Locust would fire an event of its own, and requests would look through a body of megabytes.
    response = client.send(
        prepared,
        stream=True,
        allow_redirects=False,
        timeout=(limits.connect, limits.stall),
        # Locust's sessions look at no variable of the environment.
        verify=(os.environ.get("REQUESTS_CA_BUNDLE") or True) if client.verify is True else client.verify,
    )
    raw: Any = response.raw
    try:
        result.status = response.status_code
        if not _is_stream(response.status_code, response.headers):
            _read_whole(response, wire, result)
        elif wire.file is None:
            result.answer.read_events(_reads(raw, result.answer), time.perf_counter_ns)
            result.ended = time.perf_counter_ns()
        else:
            _read_stream(raw._original_response, wire, result)
    finally:
        # What was read to its end has given its connection back by now; the rest is closed, never reused.
        raw.close() if not raw.isclosed() else raw.release_conn()


def _is_stream(status: int, headers: Any) -> bool:
    return status == 200 and "json" not in headers.get("content-type", "")


def _read_stream(head: http.client.HTTPResponse | kept.StreamHead, wire: Wire, result: _Result) -> None:
    assert wire.file is not None
    _collect(head, wire.file, result.answer)
    result.ended = wire.file.tap.last


def _read_whole(response: Response, wire: Wire, result: _Result) -> None:
    """Read an answer that is no stream: an error, or one plain JSON."""
    if response.status_code != 200:
        raise _HttpError(_http_error(response, response.raw))
    body = _read_at_most(response.raw, WHOLE_BYTES)
    result.answer.read_whole(body, time.perf_counter_ns() if wire.file is None else wire.file.read_at)
    result.ended = time.perf_counter_ns()


def _prepare(client: Session, wire: Wire, outgoing: Outgoing) -> PreparedRequest:
    """The request: what all of a user's have in common is prepared once, and again when the server has set cookies."""
    prepared = wire.prepared
    if (
        prepared is None
        or prepared.url != outgoing.url
        or wire.common != outgoing.headers
        or _has_cookies(client, prepared)
    ):
        # requests' own: Locust's expects that its way of sending was taken.
        prepared = wire.prepared = Session.prepare_request(client, Request("POST", outgoing.url))
        prepared.headers.pop("Content-Length")  # of no body
        prepared.headers.update(outgoing.headers)
        wire.common, wire.head = dict(outgoing.headers), ""
    prepared.body = outgoing.body  # type: ignore[assignment]  # urllib3 takes buffers one by one
    return prepared


def _has_cookies(client: Session, prepared: PreparedRequest) -> bool:
    """Whether a request has cookies, or had before the server took them back."""
    return bool(client.cookies) or "Cookie" in prepared.headers


def _collect(head: http.client.HTTPResponse | kept.StreamHead, file: TapFile, answer: Answer) -> None:
    """Let the tap read the body to its end, then parse it. The head is closed when the connection can be used again."""
    file.begin_body(CHUNKED if head.chunked else UNTIL_CLOSE if head.length is None else head.length)
    until = float("inf")

    def parse(ended: bool) -> None:
        answer.read_collected(*file.tap.collected(), ended)

    try:
        while not file.wait_for_end(min(SLICE_S, max(until - time.perf_counter(), 0.0))):
            parse(ended=False)
            if answer.said_its_end:
                until = min(until, file.tap.last / 1e9 + END_GRACE[answer.done])
                if time.perf_counter() >= until:
                    return
    except Exception:
        parse(ended=False)
        # The answer is complete: however its body ended, it stays a success.
        if not answer.said_its_end:
            raise
        return
    except BaseException:
        with contextlib.suppress(ProtocolError):
            parse(ended=False)
        raise
    parse(ended=True)
    if not file.tap.surplus:
        head.close()


def _reads(raw: Any, answer: Answer) -> Iterator[bytes]:
    until = float("inf")
    while True:
        if answer.said_its_end:
            # The answer is complete: however its body ends now, it stays a success.
            now = time.perf_counter()
            until = min(until, now + END_GRACE[answer.done])
            try:
                with gevent.Timeout(max(until - now, 0)):
                    data = raw.read1(READ_BYTES)
            except (gevent.Timeout, urllib3.exceptions.HTTPError):
                return
        else:
            data = raw.read1(READ_BYTES)
        if not data:
            return
        yield data


def _read_at_most(raw: Any, limit: int) -> bytes:
    body = bytearray()
    while len(body) <= limit and (data := raw.read1(READ_BYTES, decode_content=True)):
        body += data
    return bytes(body)


def _http_error(response: Any, raw: Any) -> str:
    if response.is_redirect:
        return f"redirected to {response.headers['location']}: give the server's own address as --host"
    try:
        message = http_error_message(_read_at_most(raw, ERROR_BYTES))
    except urllib3.exceptions.HTTPError:
        message = ""
    return message or response.reason or "no message"


def _classify(error: BaseException) -> tuple[str, str]:
    """The outcome for what requests or urllib3 raised, and a line that is the same for the same cause."""
    causes = _causes(error)

    def first(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in causes if isinstance(cause, kinds)), None)

    if first(urllib3.exceptions.ConnectTimeoutError) and not first(urllib3.exceptions.NewConnectionError):
        return "connect", "connecting took too long"
    if first(urllib3.exceptions.NewConnectionError, urllib3.exceptions.SSLError, ssl.SSLError):
        return "connect", _words(first(OSError) or causes[-1])
    if first(urllib3.exceptions.ReadTimeoutError):
        return "stalled", "no byte within the stall timeout"
    if cut := first(http.client.IncompleteRead, http.client.RemoteDisconnected, ConnectionError):
        return "cut", _words(cut)
    if first(TimeoutError):
        return "stalled", "the upload made no progress"
    return "protocol", _words(causes[-1])


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it wraps: urllib3 and requests keep causes in `args`, `reason` and `__cause__`."""
    causes: list[BaseException] = []
    queue = [error]
    while queue:
        cause = queue.pop(0)
        if cause in causes:
            continue
        causes.append(cause)
        inner = (*cause.args, getattr(cause, "reason", None), cause.__cause__)
        queue += [item for item in inner if isinstance(item, BaseException)]
    # requests' own ConnectionError is an OSError too, and says nothing that its cause does not say better.
    return [cause for cause in causes if not isinstance(cause, RequestsConnectionError)] or causes


def _words(cause: BaseException) -> str:
    if isinstance(cause, http.client.IncompleteRead):
        return "the body ended early"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    # Without the addresses of objects, which would make each failure one of its own in Locust's table.
    return str(cause).rpartition(": ")[2] or type(cause).__name__


def _record(outgoing: Outgoing, wire: Wire, result: _Result, before: int, terms: Terms) -> Record:
    answer = result.answer
    start = before if wire.started is None else wire.started
    timing = latencies(start, answer.times)
    tokens: int | None = answer.output_tokens
    source: str | None = "usage"
    if tokens is None:
        # A chunk may hold several tokens, a body that was not streamed tells nothing.
        tokens, source = (len(answer.times), "chunks") if answer.streamed and answer.times else (None, None)
    error = result.error or ""
    for secret in terms.secrets:
        error = error.replace(secret, "***")
    return Record(
        clip=outgoing.clip,
        seq=outgoing.seq,
        user=outgoing.user,
        worker=outgoing.worker,
        warmup=outgoing.warmup,
        started_at=(start + terms.epoch_ns) / 1e9,
        due_at=None if outgoing.due is None else (outgoing.due + terms.epoch_ns) / 1e9,
        lag=None if outgoing.due is None else (start - outgoing.due) / 1e9,
        outcome=result.outcome,
        ok=result.outcome == "ok",
        http_status=result.status,
        error=shorten(error, MAX_ERROR_CHARS // 4) if result.outcome != "ok" else None,
        upload=seconds(start, wire.uploaded),
        headers=seconds(start, wire.headers),
        ttft=timing.ttft,
        itl=timing.itl,
        e2el=timing.e2el,
        stream_end=seconds(start, result.ended),
        chunks=len(answer.times),
        output_tokens=tokens,
        output_tokens_source=source,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        finish_reason=answer.finish_reason,
        streamed=answer.streamed,
        audio_s=round(outgoing.audio_s, 3),
        text=answer.text,
        reference=outgoing.reference,
    )


def request_headers(run: str, worker: int, seq: int, clip: str) -> dict[str, str]:
    """Headers that name a request, so that a server's log can be held against the records."""
    return {"X-Request-Id": f"{run}-{worker}-{seq}", "X-Clip-Id": quote(clip)}

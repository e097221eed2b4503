"""Send one request, read its response, and make a record of them. Every request has exactly one record."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

import gevent
import msgspec
from requests import PreparedRequest, Request, Session

from asr_load.apis.envelopes import unwrap
from asr_load.apis.request import TranscriptionRequest
from asr_load.http import hooks
from asr_load.http.collector import CHUNKED, UNTIL_CLOSE
from asr_load.http.connection import Connection, UserConnection, place_of
from asr_load.http.failure import ENDED, Failure, client_want, failure, words
from asr_load.http.head import FinalHead, StreamHead, read_head
from asr_load.http.head_file import HeadFile
from asr_load.http.timeouts import Timeouts
from asr_load.http.transport import Transport
from asr_load.http.turn import Turn
from asr_load.stream.cause import BUSY_CODES, Cause, cause_of
from asr_load.stream.coding import Decoded
from asr_load.stream.reader import Answer, ProtocolError, http_error_message
from asr_load.stream.record import LiveRecord, Record
from asr_load.stream.timing import latencies, seconds
from asr_load.text import Intake

READ_BYTES = 65536
ERROR_BYTES = 65536
"""Bytes of a response to read at once, and maximum bytes to read of an error's body."""

SERVER_CHARS = 200
"""Maximum length of the Server header."""

REDIRECTS = (301, 302, 303, 307, 308)

PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
"""Minimum and maximum pause of a user, in seconds, after a failed connection or a busy server's response."""

MOST_KINDS = 1000
"""Maximum number of prepared requests to share: a locustfile may generate any number of URLs."""

SLICE_S = 2.0
"""Seconds between looks at a response before its body has ended."""


@dataclass(frozen=True)
class ExchangeConfig:
    """The settings that all exchanges of a test share."""

    limits: Timeouts
    epoch_ns: int
    """Offset that converts a perf_counter stamp to nanoseconds since the epoch."""
    intake: Intake = field(default_factory=Intake)
    transport: Transport = field(default_factory=Transport)
    keep: bool = True
    """Whether to keep connections for the next request."""


@dataclass
class _Result:
    """The progress and result of a request."""

    answer: Answer = field(default_factory=Answer)
    outcome: str = "protocol"
    error: str | None = None
    cause: str = ""
    status: int | None = None
    ended: int | None = None
    first: int | None = None
    """Start of the first attempt, if there was a second one."""
    first_error: str | None = None


class _HttpError(Exception):
    """The response had a status other than 200."""


def exchange(
    client: Session, user_connection: UserConnection, request: TranscriptionRequest, config: ExchangeConfig
) -> tuple[Record, BaseException | None]:
    """Send a request and read its response. Returns its record and the exception that the caller must reraise, or
    None."""
    result = _Result()
    user_connection.reset()
    before = time.perf_counter_ns()
    reraise: BaseException | None = None
    time_limit = gevent.Timeout(config.limits.total)
    time_limit.start()
    try:
        _send_and_read(client, user_connection, request, config, result)
    except gevent.Timeout as error:
        if error is time_limit:
            _fail(result, user_connection, "timeout", f"not finished after {config.limits.total:g} s")
        else:
            limit = "" if error.seconds is None else f" of {error.seconds:g} s"
            _fail(result, user_connection, "timeout", f"not finished within the locustfile's limit{limit}")
            reraise = error
    except Exception as error:
        if want := client_want(error):
            _fail(result, user_connection, "client", want)
        else:
            _fail(result, user_connection, "protocol", f"{type(error).__name__}: {error}")
            reraise = error
    except BaseException as error:  # usually GreenletExit, with which Locust ends its users
        _fail(result, user_connection, "unfinished", "cut off by the end of the test")
        reraise = error
    finally:
        time_limit.close()
        user_connection.drop()
    return _record(request, user_connection, result, before, config), reraise


def never_sent(request: TranscriptionRequest, config: ExchangeConfig, outcome: str, why: str) -> Record:
    """The record of a request that was taken from the schedule but never sent."""
    result = _Result(outcome=outcome, error=why)
    record = _record(request, UserConnection(), result, time.perf_counter_ns(), config)
    return record if request.realtime is None else LiveRecord(**msgspec.structs.asdict(record))


def _send_and_read(
    client: Session,
    user_connection: UserConnection,
    request: TranscriptionRequest,
    config: ExchangeConfig,
    result: _Result,
) -> None:
    try:
        try:
            _attempt(client, user_connection, request, config, result)
        except (_HttpError, Failure) as error:
            if not _was_dead(error, user_connection, result):
                raise
            # No byte of a response arrived, so retry on a new connection, where a failure would count.
            result.first, result.first_error, result.status = user_connection.started, str(error), None
            user_connection.reset()
            _attempt(client, user_connection, request, config, result)
        _conclude(result)
        if result.answer.error_code in BUSY_CODES and not result.answer.times:
            user_connection.pause_s = PAUSE_S
    except _HttpError as error:
        result.outcome, result.error = f"http_{result.status}", str(error)
    except ProtocolError as error:
        _fail(result, user_connection, "protocol", str(error))
    except Failure as error:
        result.cause = error.cause
        _fail(result, user_connection, error.outcome, str(error))


def _was_dead(error: _HttpError | Failure, user_connection: UserConnection, result: _Result) -> bool:
    """Whether the server had closed a kept connection: silently while it was idle, or with a 408 (RFC 9110,
    15.5.9)."""
    if isinstance(error, _HttpError):
        return user_connection.reused and result.status == HTTPStatus.REQUEST_TIMEOUT
    return user_connection.reused and user_connection.headers is None and error.outcome == "cut"


def _conclude(result: _Result) -> None:
    """Derive the outcome from a finished response."""
    answer = result.answer
    result.outcome = answer.outcome()
    otherwise = {
        "cut": "the body ended without a finish_reason or [DONE]",
        "empty": "no text",
        "aborted": f"finish_reason {answer.finish_reason}",
    }
    result.error = answer.error or otherwise.get(result.outcome)


def _fail(result: _Result, user_connection: UserConnection, outcome: str, error: str) -> None:
    """Set the outcome and error, unless the response was already complete."""
    answer = result.answer
    if answer.said_its_end or answer.error is not None:
        _conclude(result)
        if result.ended is None:
            result.ended = user_connection.last_read
    else:
        result.outcome, result.error = outcome, error


def _attempt(
    client: Session,
    user_connection: UserConnection,
    request: TranscriptionRequest,
    config: ExchangeConfig,
    result: _Result,
) -> None:
    limits = config.limits
    transport = config.transport.of_client(client, request.url)
    prepared = prepare(client, user_connection, request, transport)
    connection = user_connection.connect(place_of(request.url), transport, limits.connect)
    hooked = hooks.has_hooks(client, prepared)
    head: FinalHead | StreamHead | None = None

    def ask(prepared: PreparedRequest) -> FinalHead | StreamHead:
        own = {**request.own_headers, "Content-Length": str(sum(map(len, request.body)))}
        head = _ask(user_connection, prepared, own, request.body, config, plain=hooked)
        if isinstance(head, FinalHead):
            hooks.keep_cookies(client, prepared, head)
        return head

    try:
        head = ask(prepared)
        if hooked:
            assert isinstance(head, FinalHead)

            def again(other: PreparedRequest) -> FinalHead:
                user_connection.connect(connection.place, transport, limits.connect)
                user_connection.head = ""
                answer = ask(other)
                user_connection.head = ""
                assert isinstance(answer, FinalHead)
                return answer

            response: Any = hooks.call_hooks(prepared, head, again)
            head = response.raw._original_response
            assert head is not None
        result.status = head.status
        if isinstance(head, FinalHead) and head.status != HTTPStatus.OK:
            _refuse(head, user_connection)
        file = user_connection.file
        assert file is not None
        _collect(head, file, result.answer)
        result.ended = file.reader.last
    except (OSError, HTTPException) as error:
        raise failure(error) from error
    except Failure as error:
        raise (_of_handshake(error, user_connection, connection) or error) from error
    finally:
        is_free = head is not None and head.isclosed() and not head.will_close and connection.sent_all
        if not (is_free and config.keep):
            connection.close()


def _ask(
    user_connection: UserConnection,
    prepared: PreparedRequest,
    own: dict[str, str],
    body: list[bytes | memoryview],
    config: ExchangeConfig,
    *,
    plain: bool,
) -> FinalHead | StreamHead:
    """Send a request, with the headers of this request only in `own`, and read the head of its response."""
    connection, stall = user_connection.connection, config.limits.stall
    assert connection is not None
    if not user_connection.head:
        user_connection.head = _head(connection, prepared, own)
    lines = [f"{name}: {value}\r\n" for name, value in own.items()]
    head = "".join([user_connection.head, *lines, "\r\n"])
    file = user_connection.begin(connection, stall)
    connection.send([head.encode("latin-1"), *body], stall, lambda: _has_refused(file))
    user_connection.uploaded = time.perf_counter_ns()
    said = user_connection.connections
    answer = read_head(file, plain=plain or said.server is None)
    user_connection.headers = file.read_at
    if isinstance(answer, FinalHead) and said.server is None:
        said.server = config.intake.line(answer.headers.get("server", ""), SERVER_CHARS)
    return answer


def _head(connection: Connection, prepared: PreparedRequest, own: dict[str, str]) -> str:
    """The part of a request's head that the user's next request shares."""
    fields: dict[str, Any] = {"Host": connection.place.name, **prepared.headers}
    if connection.target:
        fields |= connection.transport.proxy_headers
    others = {name.lower() for name in own}
    lines = [f"POST {connection.target}{prepared.path_url} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items() if name.lower() not in others]
    return "\r\n".join([*lines, ""])


def _has_refused(file: HeadFile) -> bool:
    """Whether a response has arrived that refuses the request before it was read completely."""
    status = re.match(rb"HTTP/1\.\d (\d)", file.peek()) if file.has_come else None
    return status is not None and status[1] >= b"3"


def _of_handshake(error: Failure, user_connection: UserConnection, connection: Connection) -> Failure | None:
    """The server's complaint about the client certificate, which TLS 1.3 allows only after the handshake; else None."""
    tls = connection.tls
    if tls is None or error.outcome != "cut" or user_connection.reused or user_connection.headers is not None:
        return None
    if tls.error is None and tls.answered:
        return None
    return Failure("connect", ENDED if tls.error is None else words(tls.error), Cause.TLS)


def _refuse(head: FinalHead, user_connection: UserConnection) -> None:
    """Raise the error of a response with a status other than 200."""
    if head.status == HTTPStatus.SWITCHING_PROTOCOLS:
        raise ProtocolError("the server switched protocols (101) although the request did not ask for it")
    if head.status in BUSY_CODES:
        retry_after = head.headers.get("retry-after", "")
        user_connection.pause_s, user_connection.may_retry = pause_s(retry_after), bool(retry_after)
    if head.status in REDIRECTS and (to := head.headers.get("location")):
        raise _HttpError(f"redirected to {to}: set --host to the address of the server itself")
    raise _HttpError(_said_by(head) or head.reason or "no message")


def _said_by(head: FinalHead) -> str:
    """The error message in a response's body, as far as it arrives."""
    body, turn = bytearray(), Turn()
    with contextlib.suppress(Failure, HTTPException, ProtocolError):
        coding = Decoded.of(head.headers.get("content-encoding"))
        while len(body) <= ERROR_BYTES and (data := head.read1(READ_BYTES)):
            body += data if coding is None else coding.piece(data)
            turn.give()
        if len(body) <= ERROR_BYTES and not head.length:
            head.close()
    return http_error_message(bytes(body))


def pause_s(retry_after: str) -> float:
    """Seconds to wait after a refusal, by its Retry-After (seconds or a date: RFC 9110, 10.2.3), within bounds."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            seconds = 0.0
    return min(max(PAUSE_S, seconds), MAX_PAUSE_S)  # in this order: NaN becomes PAUSE_S


def over_http(url: str) -> str:
    """Replace the scheme of a WebSocket URL: ws with http, wss with https."""
    return f"http{url[2:]}" if url.startswith("ws") else url


def prepare(
    client: Session, user_connection: UserConnection, request: TranscriptionRequest, transport: Transport
) -> PreparedRequest:
    """Prepare the part that a user's requests share, once if possible; users whose sessions have only headers share it.

    For a realtime session, prepare the request over HTTP, whose headers the WebSocket uses.
    """
    prepared = user_connection.prepared
    common = (request.url, request.headers, transport)
    if prepared is None or user_connection.common != common or _is_its_own(client, prepared):
        shared = user_connection.connections.prepared
        same = (request.url, *request.headers.items(), *client.headers.items())
        plain = not (client.cookies or client.auth or client.params or hooks.has_hooks(client))
        prepared = shared.get(same) if plain else None
        if prepared is None:
            # Use the method of requests: Locust's override expects that its own session sends the request.
            prepared = Session.prepare_request(client, Request("POST", over_http(request.url)))
            prepared.headers.pop("Content-Length")  # that of an empty body
            prepared.headers.update(request.headers)
            if plain and len(shared) < MOST_KINDS:
                shared[same] = prepared
        user_connection.prepared, user_connection.common, user_connection.head = prepared, common, ""
    return prepared


def _is_its_own(client: Session, prepared: PreparedRequest) -> bool:
    """Whether each request must be prepared anew: it has or had cookies, or hooks wait for its response."""
    return bool(client.cookies) or "Cookie" in prepared.headers or hooks.has_hooks(client, prepared)


def _collect(head: FinalHead | StreamHead, file: HeadFile, answer: Answer) -> None:
    """Let the reader read the body to its end, then parse it. Closes the head if the connection can be reused."""
    file.begin_body(CHUNKED if head.chunked else UNTIL_CLOSE if head.length is None else head.length)
    answer.framed = head.chunked or head.length is not None
    until = float("inf")
    coding = None if isinstance(head, StreamHead) else Decoded.of(head.headers.get("content-encoding"))

    def parse(ended: bool, whole: bool = False) -> None:
        collected = file.reader.collected()
        turn = Turn()
        for _ in answer.steps(*(collected if coding is None else coding.take(*collected)), ended):
            if not whole:
                turn.give()

    try:
        while not file.wait_for_end(min(SLICE_S, max(until - time.perf_counter(), 0.0))):
            parse(ended=False)
            # While more content may arrive there is no limit, and an earlier limit no longer applies.
            grace_s = answer.grace_s
            until = min(until, file.reader.last / 1e9 + grace_s) if grace_s < float("inf") else grace_s
            if time.perf_counter() >= until:
                return
    except Exception:
        parse(ended=False)
        # A complete response remains a success, however its body ended.
        if not answer.said_its_end:
            raise
        return
    except BaseException:
        with contextlib.suppress(ProtocolError):
            parse(ended=False, whole=True)  # without giving turns: the greenlet is being killed
        raise
    head.close()
    parse(ended=True)


def _record(
    request: TranscriptionRequest, user_connection: UserConnection, result: _Result, before: int, config: ExchangeConfig
) -> Record:
    answer = result.answer
    raw = answer.text
    unwrapped = unwrap(raw, request.text_format)
    if result.outcome == "ok" and not unwrapped.text.strip():
        result.outcome, result.error = "empty", "no text except an envelope"
    # If the second attempt found no connection, only the first one was sent.
    start = next(at for at in (user_connection.started, result.first, before) if at is not None)
    retry_s = 0.0 if result.first is None else (start - result.first) / 1e9
    timing = latencies(start, answer.times)
    tokens: int | None = answer.output_tokens
    source: str | None = "usage"
    if tokens is None:
        # A chunk may hold several tokens; a body that was not streamed says nothing about tokens.
        tokens, source = (len(answer.times), "chunks") if answer.streamed and answer.times else (None, None)
    return Record(
        **of_request(request, config, start),
        lag=None if request.due is None else (start - request.due) / 1e9,
        outcome=result.outcome,
        ok=result.outcome == "ok",
        http_status=result.status,
        error=config.intake.line(result.error or "") if result.outcome != "ok" else None,
        cause=_cause(result),
        # The upload ended before the response: the kernel's stamp of it may be earlier than our reading of the clock.
        upload=seconds(
            start,
            user_connection.uploaded
            and min(user_connection.uploaded, user_connection.headers or user_connection.uploaded),
        ),
        headers=seconds(start, user_connection.headers),
        ttft=timing.ttft,
        itl=timing.itl,
        e2el=timing.e2el,
        stream_end=seconds(start, result.ended),
        chunks=len(answer.times),
        output_tokens=tokens,
        output_tokens_source=source,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        finish_reason=None if answer.finish_reason is None else config.intake.line(answer.finish_reason),
        streamed=answer.streamed,
        text=config.intake.speech(unwrapped.text),
        raw_text=None if unwrapped.text == raw else config.intake.speech(raw),
        text_format=unwrapped.format,
        ttft_text=None if unwrapped.format == "raw" else seconds(start, answer.came(unwrapped.start)),
        retries=int(result.first is not None),
        retry_s=retry_s,
        connect=user_connection.connect_s,
        replica=user_connection.replica,
        first_error=result.first_error and config.intake.line(result.first_error),
    )


def _cause(result: _Result) -> str:
    if result.outcome == "ok":
        return ""
    return result.cause or cause_of(result.status, result.answer.error_code, result.error or "")


def of_request(request: TranscriptionRequest, config: ExchangeConfig, start: int) -> dict[str, Any]:
    """The fields of a record that come from its request, which started at `start` (perf_counter nanoseconds) and ends
    now."""
    return {
        "clip": request.clip,
        "seq": request.seq,
        "user": request.user,
        "worker": request.worker,
        "user_class": request.user_class,
        "warmup": request.warmup,
        "started_at": (start + config.epoch_ns) / 1e9,
        "due_at": None if request.due is None else (request.due + config.epoch_ns) / 1e9,
        "audio_s": round(request.audio_s, 3),
        "reference": request.reference,
        "retry_of": request.retry_of,
        "ended_at": (time.perf_counter_ns() + config.epoch_ns) / 1e9,
    }

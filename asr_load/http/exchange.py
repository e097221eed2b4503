"""One request and its answer, from a connection to a record. Whatever happens, there is one record."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import gevent
import urllib3
from requests import PreparedRequest, Request, Response, Session
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import RequestException

from asr_load.http import keep_alive
from asr_load.http.connection import UserConnection
from asr_load.http.socket_reader import CHUNKED, UNTIL_CLOSE, HeadFile
from asr_load.http.timeouts import Timeouts
from asr_load.http.transport import Transport
from asr_load.http.transport import words as tls_words
from asr_load.stream.coding import Decoded, decoded
from asr_load.stream.limits import TURN_S
from asr_load.stream.reader import MAX_ERROR_CHARS, Answer, ProtocolError, http_error_message, shorten
from asr_load.stream.record import Record
from asr_load.stream.timing import latencies, seconds

READ_BYTES = 65536
ERROR_BYTES = 65536
BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
"""What a server says that is not to be asked again at once."""

PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
"""Before a user asks again where there is no connection, or a server is busy; the longest that a server may ask for."""

_WANTS = {
    errno.EMFILE: ": raise ulimit -n, or lower -u",
    errno.ENFILE: ": the whole machine has no more, lower -u",
    errno.ENOMEM: "",
    errno.ENOBUFS: "",
    errno.EADDRNOTAVAIL: ": no local port is left, lower -u or add workers on other machines",
}
"""What a machine may run out of, and what helps."""

SLICE_S = 2.0
"""How often an answer that is collected is looked at before its body has ended."""


@dataclass(frozen=True)
class TranscriptionRequest:
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
    user_class: str = ""
    warmup: bool = False
    due: int | None = None
    """When it should have been sent (open loop), in perf_counter nanoseconds."""
    queued: bool = False
    """Whether it was due before any user was free."""
    own_headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExchangeConfig:
    """What all exchanges of a test share."""

    limits: Timeouts
    epoch_ns: int
    """What turns a perf_counter stamp into nanoseconds since the epoch."""
    strike: Callable[[str], str]
    """Strikes secrets out of whatever a server says."""
    strike_speech: Callable[[str], str] = str
    """The same for a transcript, in which no word of speech may be missing."""
    transport: Transport = field(default_factory=Transport)


@dataclass
class _Result:
    """How a request went, as far as it went."""

    answer: Answer = field(default_factory=Answer)
    outcome: str = "protocol"
    error: str | None = None
    status: int | None = None
    ended: int | None = None
    first: int | None = None
    """When the first try began, where there was another one."""


class _HttpError(Exception):
    """An answer with another status than 200."""


def exchange(
    client: Session, user_connection: UserConnection, request: TranscriptionRequest, config: ExchangeConfig
) -> tuple[Record, BaseException | None]:
    """Send a request and read its answer. Returns its record and what the caller must raise on, if anything."""
    result = _Result()
    user_connection.reset()
    user_connection.stall = config.limits.stall
    before = time.perf_counter_ns()
    reraise: BaseException | None = None
    time_limit = gevent.Timeout(config.limits.total)
    time_limit.start()
    try:
        _send_and_read(client, user_connection, request, config, result)
    except gevent.Timeout as error:
        if error is time_limit:
            _fail(result, user_connection, "timeout", f"no end after {config.limits.total:g} s")
        else:
            limit = "" if error.seconds is None else f" of {error.seconds:g} s"
            _fail(result, user_connection, "timeout", f"no end within the locustfile's own limit{limit}")
            reraise = error
    except Exception as error:
        if want := client_want(error):
            _fail(result, user_connection, "client", want)
        else:
            _fail(result, user_connection, "protocol", f"{type(error).__name__}: {error}")
            reraise = error
    except BaseException as error:  # GreenletExit, as a rule: Locust ends its users so
        _fail(result, user_connection, "unfinished", "cut off by the end of the test")
        reraise = error
    finally:
        time_limit.close()
        user_connection.drop()
    return _record(request, user_connection, result, before, config), reraise


def never_sent(request: TranscriptionRequest, config: ExchangeConfig, outcome: str, why: str) -> Record:
    """The record of a request that was taken and never sent."""
    result = _Result(outcome=outcome, error=why)
    return _record(request, UserConnection(), result, time.perf_counter_ns(), config)


def _send_and_read(
    client: Session,
    user_connection: UserConnection,
    request: TranscriptionRequest,
    config: ExchangeConfig,
    result: _Result,
) -> None:
    try:
        if not _try_on_kept(client, user_connection, request, config, result):
            result.first, result.status = user_connection.started, None
            user_connection.reset()
            _attempt(client, user_connection, request, config, result)
        _conclude(result)
        if result.answer.error_code in BUSY and not result.answer.times:
            user_connection.pause_s = PAUSE_S
    except _HttpError as error:
        result.outcome, result.error = f"http_{result.status}", str(error)
    except ProtocolError as error:
        _fail(result, user_connection, "protocol", str(error))
    except (RequestException, urllib3.exceptions.HTTPError) as error:
        _fail(result, user_connection, *_classify(error))


def _try_on_kept(
    client: Session,
    user_connection: UserConnection,
    request: TranscriptionRequest,
    config: ExchangeConfig,
    result: _Result,
) -> bool:
    """Send a request and read its answer. Returns False where it was a kept-alive connection that turned out dead.

    A server may close it while it is idle, or say so with a 408 (RFC 9110, 15.5.9), and that is only noticed now.
    Nothing of an answer came, so it is no answer's failure; on a new connection it would be.
    """
    try:
        _attempt(client, user_connection, request, config, result)
    except _HttpError:
        if not (user_connection.reused and result.status == HTTPStatus.REQUEST_TIMEOUT):
            raise
        return False
    except (RequestException, urllib3.exceptions.HTTPError) as error:
        if not (user_connection.reused and user_connection.headers is None and _classify(error)[0] == "cut"):
            raise
        return False
    return True


def _conclude(result: _Result) -> None:
    """Take the outcome from an answer that said all that it will."""
    answer = result.answer
    result.outcome = answer.outcome()
    otherwise = {
        "cut": "the body ended without a finish_reason or [DONE]",
        "empty": "no text",
        "aborted": f"finish_reason {answer.finish_reason}",
    }
    result.error = answer.error or otherwise.get(result.outcome)


def _fail(result: _Result, user_connection: UserConnection, outcome: str, error: str) -> None:
    """Note what ended the exchange, unless the answer was complete before."""
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
    prepared = _prepare(client, user_connection, request)
    own = {**request.own_headers, "Content-Length": str(sum(map(len, request.body)))}
    connection = keep_alive.connection_for(client, user_connection, prepared)
    if connection is None:
        prepared.headers.update(own)
        _ask_requests(client, user_connection, prepared, config, result)
        return
    head = None
    try:
        head = keep_alive.post(client, connection, user_connection, prepared, own)
        result.status = head.status
        if isinstance(head, keep_alive.StreamHead) or head.status == HTTPStatus.OK:
            _read_stream(head, user_connection, result)
        else:
            _refuse(keep_alive.as_response(client, prepared, head), user_connection)
    finally:
        if head is None or head.will_close or not head.isclosed():
            connection.close()


def _ask_requests(
    client: Session, user_connection: UserConnection, prepared: PreparedRequest, config: ExchangeConfig, result: _Result
) -> None:
    transport = config.transport
    if transport.proxy:
        adapter: Any = client.get_adapter(prepared.url or "")
        if transport.proxy not in adapter.proxy_manager:
            adapter.proxy_manager[transport.proxy] = user_connection.through(transport)
    # Not client.post: Locust would fire an event of its own, and requests would look through a body of megabytes.
    response = client.send(
        prepared,
        stream=True,
        allow_redirects=False,
        timeout=(config.limits.connect, config.limits.stall),
        # What a locustfile says of its own client stands.
        verify=transport.verify if client.verify is True else client.verify,
        cert=client.cert or transport.cert,
        proxies=client.proxies or transport.proxies,
    )
    raw: Any = response.raw
    connects = user_connection.connects
    connects.server = connects.server or shorten(response.headers.get("server", ""), 200)
    try:
        result.status = response.status_code
        if response.status_code != HTTPStatus.OK:
            _refuse(response, user_connection)
        elif user_connection.file is None:
            head = raw._original_response
            result.answer.framed = head.chunked or head.length is not None
            reads = decoded(_reads(raw, user_connection, result.answer), response.headers.get("content-encoding"))
            result.answer.read_events(reads, time.perf_counter_ns)
            result.ended = user_connection.last_read
        else:
            _read_stream(raw._original_response, user_connection, result)
    finally:
        # What was read to its end has given its connection back by now; the rest is closed, never reused.
        raw.close() if not raw.isclosed() else raw.release_conn()


def _read_stream(
    head: http.client.HTTPResponse | keep_alive.StreamHead, user_connection: UserConnection, result: _Result
) -> None:
    assert user_connection.file is not None
    _collect(head, user_connection.file, result.answer)
    result.ended = user_connection.file.reader.last


def _refuse(response: Response, user_connection: UserConnection) -> None:
    """Raise what an answer with another status than 200 says."""
    if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
        raise ProtocolError("the server switched protocols (101), which nobody asked for")
    if response.status_code in BUSY:
        user_connection.pause_s = pause_s(response.headers.get("retry-after", ""))
    raise _HttpError(_http_error(response, response.raw))


def pause_s(retry_after: str) -> float:
    """Seconds to wait after a refusal, within bounds: of its Retry-After (seconds, or a date: RFC 9110, 10.2.3)."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            seconds = 0.0
    return min(max(PAUSE_S, seconds), MAX_PAUSE_S)  # in this order: what is no number is the least


def _prepare(client: Session, user_connection: UserConnection, request: TranscriptionRequest) -> PreparedRequest:
    """The request: what all of a user's have in common is prepared once, and again when the server has set cookies."""
    prepared = user_connection.prepared
    if (
        prepared is None
        or prepared.url != request.url
        or user_connection.common != request.headers
        or _has_cookies(client, prepared)
    ):
        # requests' own: Locust's expects that its way of sending was taken.
        prepared = user_connection.prepared = Session.prepare_request(client, Request("POST", request.url))
        prepared.headers.pop("Content-Length")  # of no body
        prepared.headers.update(request.headers)
        user_connection.common, user_connection.head = dict(request.headers), ""
        user_connection.address = keep_alive.address_of(request.url)
    prepared.body = request.body  # type: ignore[assignment]  # urllib3 takes buffers one by one
    return prepared


def _has_cookies(client: Session, prepared: PreparedRequest) -> bool:
    """Whether a request has cookies, or had before the server took them back."""
    return bool(client.cookies) or "Cookie" in prepared.headers


def _collect(head: http.client.HTTPResponse | keep_alive.StreamHead, file: HeadFile, answer: Answer) -> None:
    """Let the reader read the body to its end, then parse it. The head is closed when the connection is free again."""
    file.begin_body(CHUNKED if head.chunked else UNTIL_CLOSE if head.length is None else head.length)
    answer.framed = head.chunked or head.length is not None
    until = float("inf")
    coding = None if isinstance(head, keep_alive.StreamHead) else Decoded.of(head.headers.get("content-encoding"))

    def parse(ended: bool, whole: bool = False) -> None:
        collected = file.reader.collected()
        turn = Turn()
        for _ in answer.steps(*(collected if coding is None else coding.take(*collected)), ended):
            if not whole:
                turn.give()

    try:
        while not file.wait_for_end(min(SLICE_S, max(until - time.perf_counter(), 0.0))):
            parse(ended=False)
            # While more content may come there is no limit, and what was one is none any more.
            grace_s = answer.grace_s
            until = min(until, file.reader.last / 1e9 + grace_s) if grace_s < float("inf") else grace_s
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
            parse(ended=False, whole=True)  # whoever ends this does not wait
        raise
    head.close()
    parse(ended=True)


class Turn:
    """Gives the event loop to others when a greenlet has had it for long: what is there to be read never waits."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + TURN_S

    def give(self) -> None:
        """Let others run, where it is time."""
        if time.perf_counter() > self._until:
            gevent.sleep(0)
            self._until = time.perf_counter() + TURN_S


def _reads(raw: Any, user_connection: UserConnection, answer: Answer) -> Iterator[bytes]:
    until = float("inf")
    turn = Turn()
    while True:
        turn.give()
        data: bytes | None
        if answer.said_its_end:
            # The answer is complete: however its body ends now, it stays a success.
            now, grace_s = time.perf_counter(), answer.grace_s
            until = min(until, now + grace_s) if grace_s < float("inf") else grace_s
            try:
                data = gevent.with_timeout(max(until - now, 0), raw.read1, READ_BYTES, timeout_value=None)
            except urllib3.exceptions.HTTPError:
                return
        else:
            until = float("inf")
            data = raw.read1(READ_BYTES)
        if data is None:
            return
        user_connection.read_at = time.perf_counter_ns()
        if not data:
            return
        yield data


def _read_at_most(raw: Any, limit: int) -> bytes:
    body, turn = bytearray(), Turn()
    while len(body) <= limit and (data := raw.read1(READ_BYTES, decode_content=True)):
        body += data
        turn.give()
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
    want = next(filter(None, map(client_want, causes)), None)
    return ("client", want) if want else _classify_causes(causes)


def _classify_causes(causes: list[BaseException]) -> tuple[str, str]:
    def first(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in causes if isinstance(cause, kinds)), None)

    if first(urllib3.exceptions.ConnectTimeoutError) and not first(urllib3.exceptions.NewConnectionError):
        return "connect", "connecting took too long"
    proxy = first(urllib3.exceptions.ProxyError)
    if proxy or first(urllib3.exceptions.NewConnectionError, urllib3.exceptions.SSLError, ssl.SSLError):
        words = _words(first(ssl.SSLError) or first(OSError) or causes[-1])
        return "connect", f"the proxy: {words}" if proxy else words
    if first(urllib3.exceptions.ReadTimeoutError):
        return "stalled", "no byte within the stall timeout"
    if cut := first(http.client.IncompleteRead, http.client.RemoteDisconnected, ConnectionError):
        return "cut", _words(cut)
    if first(TimeoutError):
        return "stalled", "the upload made no progress"
    return "protocol", _words(causes[-1])


def client_want(error: BaseException) -> str | None:
    """In words, what this machine did not have for a request; None where that was not the reason."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if not isinstance(error, OSError) or error.errno not in _WANTS:
        return None
    return f"{os.strerror(error.errno).lower()}{_WANTS[error.errno]}"


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
    if isinstance(cause, ssl.SSLError):
        return tls_words(cause)
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    # Without the addresses of objects, which would make each failure one of its own in Locust's table.
    return str(cause).rpartition(": ")[2] or type(cause).__name__


def _record(
    request: TranscriptionRequest, user_connection: UserConnection, result: _Result, before: int, config: ExchangeConfig
) -> Record:
    answer = result.answer
    # Where another try found no connection, only the first one was ever sent.
    start = next(at for at in (user_connection.started, result.first, before) if at is not None)
    retry_s = 0.0 if result.first is None else (start - result.first) / 1e9
    timing = latencies(start, answer.times)
    tokens: int | None = answer.output_tokens
    source: str | None = "usage"
    if tokens is None:
        # A chunk may hold several tokens, a body that was not streamed tells nothing.
        tokens, source = (len(answer.times), "chunks") if answer.streamed and answer.times else (None, None)
    return Record(
        clip=request.clip,
        seq=request.seq,
        user=request.user,
        worker=request.worker,
        user_class=request.user_class,
        warmup=request.warmup,
        started_at=(start + config.epoch_ns) / 1e9,
        due_at=None if request.due is None else (request.due + config.epoch_ns) / 1e9,
        lag=None if request.due is None else (start - request.due) / 1e9,
        outcome=result.outcome,
        ok=result.outcome == "ok",
        http_status=result.status,
        error=shorten(config.strike(result.error or ""), MAX_ERROR_CHARS // 4) if result.outcome != "ok" else None,
        # What is answered has been sent, though the kernel's stamp of it may be older than our look at the clock.
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
        finish_reason=None if answer.finish_reason is None else config.strike(answer.finish_reason),
        streamed=answer.streamed,
        audio_s=round(request.audio_s, 3),
        text=config.strike_speech(answer.text),
        reference=request.reference,
        retries=int(result.first is not None),
        retry_s=retry_s,
        ended_at=(time.perf_counter_ns() + config.epoch_ns) / 1e9,
    )


def request_headers(run: str, worker: int, seq: int, clip: str) -> dict[str, str]:
    """Headers that name a request, so that a server's log can be held against the records."""
    return {"X-Request-Id": f"{run}-{worker}-{seq}", "X-Clip-Id": quote(clip)}

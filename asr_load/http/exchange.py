"""Send one request, read its response, and make a record of them. Every request has exactly one record."""

from __future__ import annotations

import contextlib
import time
from http import HTTPStatus

from requests import PreparedRequest, Request, Session

from asr_load.apis.transcription_request import TranscriptionRequest
from asr_load.http import hooks
from asr_load.http.attempt import Attempt, ExchangeConfig
from asr_load.http.collector import UNTIL_CLOSE
from asr_load.http.connection import Connection, UserConnection, place_of
from asr_load.http.failure import ENDED, Failure, failure, words
from asr_load.http.head import Head
from asr_load.http.loop import TimeSlice
from asr_load.http.response import Response
from asr_load.http.transport import Transport
from asr_load.stream.cause import BUSY_CODES, Cause
from asr_load.stream.reader import Answer, ProtocolError, http_error_message
from asr_load.stream.record import Record
from asr_load.stream.timing import seconds

ERROR_BYTES = 65536
"""Bytes of an error's body after which the rest is not awaited."""

SERVER_CHARS = 200
"""Maximum length of the Server header."""

REDIRECTS = (301, 302, 303, 307, 308)

MOST_KINDS = 1000
"""Maximum number of prepared requests to share: a locustfile may generate any number of URLs."""

SLICE_S = 2.0
"""Seconds between looks at a response before its body has ended."""


class _Exchange(Attempt):
    """An attempt over HTTP. It may include a second request, if the server had closed the kept connection."""

    def __init__(
        self, client: Session, user_connection: UserConnection, request: TranscriptionRequest, config: ExchangeConfig
    ) -> None:
        super().__init__(user_connection, request, config)
        self._client = client
        self.answer = Answer()
        self.ended: int | None = None
        """When the body ended."""
        self._first: int | None = None
        """Start of the first request, if there was a second one."""
        self._first_error: str | None = None

    def send(self) -> None:
        try:
            self._exchange()
        except Failure as error:
            if not self._was_dead(error):
                raise
            # No byte of a response arrived, so retry on a new connection, where a failure would count.
            self._first, self._first_error, self.status = self.user_connection.started, str(error), None
            self.user_connection.reset()
            self._exchange()
        self._conclude()
        if self.error_code in BUSY_CODES and not self.answer.times:
            self.user_connection.pause()

    def _exchange(self) -> None:
        """Send the request and read its response to the end."""
        user_connection, limits = self.user_connection, self.config.limits
        transport = self.config.transport.for_client(self._client, self.request.url)
        prepared = prepare(self._client, user_connection, self.request, transport)
        place = place_of(self.request.url)
        connection = user_connection.connect(place, transport, limits.connect)

        def send_for_hooks(prepared: PreparedRequest) -> tuple[Head, bytes]:
            user_connection.connect(place, transport, limits.connect)
            user_connection.head = ""
            response = self._send_on(connection, prepared)
            if response.head.status == HTTPStatus.OK:
                return response.head, b""
            _wait_for_error(response)
            return response.head, response.reader.collected()[0]

        try:
            if hooks.has_hooks(self._client, prepared):
                hooks.send_with_hooks(prepared, send_for_hooks)
            else:
                self._send_on(connection, prepared)
            response = user_connection.response
            assert response is not None
            self.status = response.head.status
            if self.status != HTTPStatus.OK:
                _refuse(response, user_connection)
            _collect(response, self.answer)
            self.ended = response.reader.last
        except OSError as error:
            raise failure(error) from error
        except Failure as error:
            raise (_of_handshake(error, user_connection, connection) or error) from error
        finally:
            if not self.config.keep:
                connection.close()

    def _send_on(self, connection: Connection, prepared: PreparedRequest) -> Response:
        """Send the request, with its own headers and the prepared ones, and read the head of its response."""
        request, user_connection, stall = self.request, self.user_connection, self.config.limits.stall
        fields = {**request.own_headers, "Content-Length": str(sum(map(len, request.body)))}
        if not user_connection.head:
            names = {name.lower() for name in fields}
            shared = {name: value for name, value in prepared.headers.items() if name.lower() not in names}
            user_connection.head = connection.request_head("POST", prepared.path_url, shared)
        lines = [f"{name}: {value}\r\n" for name, value in fields.items()]
        head = "".join([user_connection.head, *lines, "\r\n"])
        response = user_connection.begin(connection, stall)
        connection.send([head.encode("latin-1"), *request.body], stall, lambda: response.has_refused)
        user_connection.uploaded = time.perf_counter_ns()
        response.read_head()
        user_connection.headers = response.read_at
        if user_connection.shared.server is None:
            user_connection.shared.server = self.config.intake.line(response.head.get("server"), SERVER_CHARS)
        hooks.keep_cookies(self._client, prepared, response.head)
        return response

    def _was_dead(self, failure: Failure) -> bool:
        """Whether the server had closed a kept connection: silently while it was idle, or with a 408 (RFC 9110,
        15.5.9)."""
        is_silent = failure.outcome == "cut" and self.user_connection.headers is None
        return self.user_connection.reused and (is_silent or self.status == HTTPStatus.REQUEST_TIMEOUT)

    def _conclude(self) -> None:
        """Derive the outcome from a complete response."""
        answer = self.answer
        self.outcome, self.error_code = answer.outcome(), answer.error_code
        reasons = {
            "cut": "the body ended without a finish_reason or [DONE]",
            "empty": "no text",
            "aborted": f"finish_reason {answer.finish_reason}",
        }
        self.error = answer.error or reasons.get(self.outcome)

    def fail(self, failure: Failure) -> None:
        if self.answer.is_complete or self.answer.error is not None:
            self._conclude()
            if self.ended is None:
                self.ended = self.user_connection.last_read
        else:
            self.outcome, self.error = failure.outcome, str(failure)

    def record(self) -> Record:
        connection, answer, intake = self.user_connection, self.answer, self.config.intake
        # If the second request found no connection, only the first one was sent.
        start = next(at for at in (connection.started, self._first, self.began) if at is not None)
        # The upload ended before the response: the kernel's stamp of it may be earlier than our reading of the clock.
        uploaded = min((at for at in (connection.uploaded, connection.headers) if at is not None), default=None)
        return self.make_record(
            start,
            answer,
            upload=seconds(start, uploaded),
            headers=seconds(start, connection.headers),
            stream_end=seconds(start, self.ended),
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            finish_reason=answer.finish_reason and intake.line(answer.finish_reason),
            retries=int(self._first is not None),
            retry_s=0.0 if self._first is None else (start - self._first) / 1e9,
            first_error=self._first_error and intake.line(self._first_error),
        )


def exchange(
    client: Session, user_connection: UserConnection, request: TranscriptionRequest, config: ExchangeConfig
) -> tuple[Record, BaseException | None]:
    """Send a request and read its response. Returns its record and the exception that the caller must reraise, or
    None."""
    attempt = _Exchange(client, user_connection, request, config)
    reraise = attempt.run()
    user_connection.drop()
    return attempt.record(), reraise


def _of_handshake(error: Failure, user_connection: UserConnection, connection: Connection) -> Failure | None:
    """The server's complaint about the client certificate, which TLS 1.3 allows only after the handshake; else None."""
    tls = connection.tls
    if tls is None or error.outcome != "cut" or user_connection.reused or user_connection.headers is not None:
        return None
    if tls.error is None and tls.answered:
        return None
    return Failure("connect", ENDED if tls.error is None else words(tls.error), Cause.TLS)


def _refuse(response: Response, user_connection: UserConnection) -> None:
    """Raise the error of a response with a status other than 200."""
    head = response.head
    outcome = f"http_{head.status}"
    if head.status == HTTPStatus.SWITCHING_PROTOCOLS:
        raise ProtocolError("the server switched protocols (101) although the request did not ask for it")
    if head.status in BUSY_CODES:
        user_connection.pause(head.get("retry-after"))
    if head.status in REDIRECTS and (to := head.get("location")):
        raise Failure(outcome, f"redirected to {to}: set --host to the address of the server itself")
    _wait_for_error(response)
    message = ""
    with contextlib.suppress(ProtocolError):
        message = http_error_message(response.body())
    raise Failure(outcome, message or head.reason or "no message")


def _wait_for_error(response: Response) -> None:
    """Wait for the body of an error, or as much of it as arrives."""
    with contextlib.suppress(Failure):
        response.wait_for_body(ERROR_BYTES)


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
        shared = user_connection.shared.prepared
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


def _collect(response: Response, answer: Answer) -> None:
    """Let the reader read the body to its end, then parse it."""
    response.begin_body()
    answer.framed = response.head.framing != UNTIL_CLOSE
    until = float("inf")
    coding = response.coding()

    def parse(ended: bool, whole: bool = False) -> None:
        collected = response.reader.collected()
        time_slice = TimeSlice()
        for _ in answer.steps(*(collected if coding is None else coding.take(*collected)), ended):
            if not whole:
                time_slice.give()

    try:
        while not response.wait_for_end(min(SLICE_S, max(until - time.perf_counter(), 0.0))):
            parse(ended=False)
            # While more content may arrive there is no limit, and an earlier limit no longer applies.
            grace_s = answer.grace_s
            until = min(until, response.reader.last / 1e9 + grace_s) if grace_s < float("inf") else grace_s
            if time.perf_counter() >= until:
                return
    except Exception:
        parse(ended=False)
        # A complete response remains a success, however its body ended.
        if not answer.is_complete:
            raise
        return
    except BaseException:
        with contextlib.suppress(ProtocolError):
            parse(ended=False, whole=True)  # without giving turns: the greenlet is being killed
        raise
    parse(ended=True)

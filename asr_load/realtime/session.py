"""Send one utterance on a realtime session, and make a record of it. Every utterance has exactly one record.

Packet i is due when a microphone would have filled it: at the beginning + (i + 1) x packet / pace, on an absolute
clock. The audio is resampled to the dialect's rate before the clock starts.
"""

from __future__ import annotations

import contextlib
import random
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from requests import Session

from asr_load.apis.realtime import RealtimeOptions, RealtimeRequest
from asr_load.apis.request import TranscriptionRequest
from asr_load.http.attempt import Attempt, ExchangeConfig
from asr_load.http.connection import UserConnection, place_of
from asr_load.http.exchange import exchange, over_http, prepare
from asr_load.http.failure import LAST_LOOK_S, Failure
from asr_load.http.transport import Transport
from asr_load.http.turn import Turn
from asr_load.realtime.dialects import DIALECTS, Dialect, choose
from asr_load.realtime.heard import Event, Heard, error_words, read_event, text_in
from asr_load.realtime.pacer import PACER, Packets
from asr_load.realtime.socket import Socket, connect
from asr_load.realtime.speech import Speech, speech_of
from asr_load.stream.numbers import number_in
from asr_load.stream.reader import ProtocolError
from asr_load.stream.record import Record, SendLag
from asr_load.stream.timing import NS, seconds

SESSION_CHARS = 100
"""Maximum length of a session's id in a record."""

GUESS = "assumed SGLang's dialect by the first event; if the server speaks OpenAI's, add --realtime-dialect openai"

EARLY = "the server sent its final text before the audio had ended, and no other after it"

LINGER_S = 2.0
"""Seconds to wait for a server that has probably sent everything: after an error, because its close or final text may
explain it; after the last turn that it detected; and after a final text that was too early."""

OF_A_CONNECTION = ("accept", "accept-encoding", "connection", "content-length", "content-type")
"""Headers of requests that a handshake omits or sets itself."""


def transmit(
    client: Session, user_connection: UserConnection, request: TranscriptionRequest, config: ExchangeConfig
) -> tuple[Record, BaseException | None]:
    """Send a request over HTTP or a realtime session. Returns its record and the exception that the caller must
    reraise, or None."""
    if request.realtime is None:
        return exchange(client, user_connection, request, config)
    return _Utterance(client, user_connection, request, request.realtime, config).speak()


@dataclass
class RealtimeSession:
    """A session that is ready for audio."""

    socket: Socket
    dialect: Dialect
    id: str
    url: str
    utterances: int = 0
    items: set[str] = field(default_factory=set)
    """Ids of the items of earlier utterances."""

    def can_go_on(self) -> bool:
        """Whether the session can take another utterance. Discards everything received since the last one."""
        try:
            self.socket.listen(0.0)
            events = [read_event(data) for data, _ in self.socket.messages]
        except (Failure, ProtocolError):
            return False
        self.socket.messages.clear()
        self.socket.begin_utterance()
        is_whole = self.socket.is_open and not self.socket.has_more
        return is_whole and all(event.type != "error" for event in events)

    def close(self) -> None:
        self.socket.close()


class _Utterance(Attempt):
    """An attempt to transcribe one clip in a session. Times are perf_counter nanoseconds."""

    def __init__(
        self,
        client: Session,
        user_connection: UserConnection,
        request: TranscriptionRequest,
        realtime: RealtimeRequest,
        config: ExchangeConfig,
    ) -> None:
        super().__init__(user_connection, request, config)
        self._client, self._realtime = client, realtime
        self.dialect = self.session_id = ""
        self.setup: int | None = None
        self.speech_ended: int | None = None
        self.audio_ended: int | None = None
        self.over: int | None = None
        """When the last event arrived."""
        self.is_ended = False
        """Whether the message that ends the audio was sent."""
        self.packets: Packets | None = None
        self.blocked_before = 0.0
        self.backlog: float | None = None
        self.sent_s = 0.0
        self.socket: Socket | None = None
        self.heard = Heard()

    def speak(self) -> tuple[Record, BaseException | None]:
        """Run the attempt. Returns its record and the exception that the caller must reraise, or None."""
        PACER.send_due()
        reraise = self.run()
        self._pause_if_refused()
        PACER.send_due()
        record = self.record()
        try:
            self._leave(keep=record.ok)
        except BaseException as error:  # keep the record, whatever ends the test or the connection now
            if self.socket is not None:
                self.socket.drop()
            self.user_connection.session = None
            reraise = reraise or (None if isinstance(error, Exception) else error)
        return record, reraise

    def fail(self, failure: Failure) -> None:
        heard = self.heard
        if self.socket is not None and self.packets is not None:
            # The final text may have arrived unread. Look without waiting.
            with contextlib.suppress(Failure, ProtocolError):
                if failure.outcome != "protocol":  # ignore everything after a protocol error
                    self.socket.listen(0.0)
            with contextlib.suppress(ProtocolError):
                self._hear(self.socket, DIALECTS[self.dialect])
            self._do_without_silence(self.packets)
        if heard.final_at is not None or heard.error is not None or heard.failed is not None:
            self._conclude()
        else:
            self.outcome, self.error = failure.outcome, str(failure)

    def _do_without_silence(self, packets: Packets) -> None:
        """Treat the text as final if the server has ended the turn and only silence was left to send."""
        if self.heard.final_at is None and packets.has_spoken and DIALECTS[self.dialect].is_final(self.heard):
            self._end_of_speech(packets)
            self._finalise()

    def _pause_if_refused(self) -> None:
        """Let the user pause if the server refused the session, as after a 429 over HTTP."""
        if self.outcome == "rejected" or self.outcome.startswith("ws_"):
            self.user_connection.pause("" if self.socket is None else self.socket.retry_after)

    def _leave(self, *, keep: bool) -> None:
        session: RealtimeSession | None = self.user_connection.session
        if session is None:
            if self.socket is not None:
                self.socket.drop()
            return
        session.utterances += 1
        session.items |= self.heard.items.keys()
        options = self._realtime.options
        if not keep or session.dialect.alone or session.utterances >= options.utterances:
            self.user_connection.session = None
            if self.outcome in ("unfinished", "timeout"):
                session.socket.drop()
            else:
                session.close()

    def send(self) -> None:
        options = self._realtime.options
        session = self.user_connection.session
        if session is None or session.url != self.request.url or not session.can_go_on():
            self._leave_old(session)
            session = self.user_connection.session = self._open(options)
            # Do everything slow before the clock starts.
            speech = speech_of(self._realtime, session.dialect.rates)
            self._configure(session, speech, options)
            self.setup = time.perf_counter_ns() - self.began
        else:
            self.socket, self.dialect, self.session_id = session.socket, session.dialect.name, session.id
            self.heard = Heard(session.items)
            speech = speech_of(self._realtime, session.dialect.rates)
        self.blocked_before = session.socket.blocked_s
        self._send_speech(session, speech, options)
        self._await_final(session)

    def _leave_old(self, session: RealtimeSession | None) -> None:
        self.user_connection.session = None
        if session is not None:
            session.close()

    def _open(self, options: RealtimeOptions) -> RealtimeSession:
        """Connect, shake hands, and detect the dialect. Raises Failure and ProtocolError."""
        request, limits = self.request, self.config.limits
        transport = self.config.transport.of_client(self._client, over_http(request.url))
        place = place_of(request.url)
        connection = self.user_connection.way(place, transport)
        connection.close()
        until = time.perf_counter() + limits.connect
        factory = self.user_connection.reader_factory
        self.socket = connect(self.user_connection, connection, factory, request.url, limits.connect)
        PACER.send_due()
        self.socket.shake_hands(self._headers(transport), until)
        PACER.send_due()
        created = self._next_event(limits.stall)
        if created.type == "error":
            raise Failure("rejected", error_words(created))
        dialect = choose(options.dialect, created, place.host, options.found)
        self.dialect = dialect.name
        named = created.session.get("id") if isinstance(created.session, dict) else created.id
        self.session_id = self.config.intake.line(text_in(named) or "", SESSION_CHARS)
        if options.server_vad and not dialect.has_vad:
            hint = f" ({GUESS})" if options.is_guess(dialect.name) else ""
            raise Failure("rejected", f"{dialect.name} cannot detect turns: use --turn-detection none{hint}")
        return RealtimeSession(self.socket, dialect, self.session_id, request.url)

    def _headers(self, transport: Transport) -> dict[str, str]:
        prepared = prepare(self._client, self.user_connection, self.request, transport)  # and the locustfile's headers
        common = {name: str(value) for name, value in prepared.headers.items() if name.lower() not in OF_A_CONNECTION}
        return {**common, **self.request.own_headers}

    def _configure(self, session: RealtimeSession, speech: Speech, options: RealtimeOptions) -> None:
        """Configure the session. Raises Failure and ProtocolError."""
        for message in session.dialect.configure(options, speech.rate):
            session.socket.send(message)
        while session.dialect.acknowledges:
            try:
                event = self._next_event(self.config.limits.stall)
                if event.type == "error":
                    raise Failure("rejected", error_words(event))
            except Failure as failure:
                if failure.outcome == "rejected" and options.is_guess(session.dialect.name):
                    raise Failure("rejected", f"{failure} ({GUESS})") from None
                raise
            if event.type == "session.updated":
                break

    def _next_event(self, patience_s: float) -> Event:
        """Wait for the next event before the audio. Raises Failure and ProtocolError."""
        socket = self.socket
        assert socket is not None
        until = time.perf_counter() + patience_s
        while not socket.messages:
            if not socket.is_open:
                why = f"closed with code {socket.close_code} before the session was ready: {socket.close_reason}"
                raise Failure("rejected", why.rstrip(": "))
            if time.perf_counter() < until:
                socket.listen(until)
            elif not self._look_again(socket):
                raise Failure("stalled", "no event within the stall timeout, before the session was ready")
        data, self.over = socket.messages.popleft()
        event = read_event(data)
        self.heard.note(event)
        if (index := number_in(event.event_index)) is not None:
            self.heard.index = index
        return event

    @staticmethod
    def _look_again(socket: Socket) -> bool:
        """Whether an unread event, or the end, had arrived."""
        until = time.perf_counter() + LAST_LOOK_S
        while socket.is_open and not socket.messages and time.perf_counter() < until:
            socket.listen(until)
        return not socket.is_open or bool(socket.messages)

    def _send_speech(self, session: RealtimeSession, speech: Speech, options: RealtimeOptions) -> None:
        socket, dialect, pace = session.socket, session.dialect, options.pace
        for message in dialect.begin():
            socket.send(message)
        # A random phase, because users begin together but microphones are not synchronized.
        begins = time.perf_counter() + (random.random() * options.packet_s / pace if pace else 0.0)
        self.packets = packets = Packets(socket, dialect, speech, packet_s=options.packet_s, pace=pace, begins=begins)
        try:
            self._while_speaking(packets, socket, dialect)
        finally:
            rest, packets.ended = not packets.ended, True
        if packets.error is not None:
            raise packets.error
        if rest:
            return
        self._end_of_speech(packets)
        self.audio_ended = time.perf_counter_ns()
        if self.heard.positions:
            self.backlog = max(speech.length_s - self.heard.positions[-1][1], 0.0)
        if dialect.name == "openai" and options.server_vad and not self.heard.needs_end:
            return
        if packets.uncommitted_s > 0:
            self.is_ended = True
            socket.send(dialect.end())

    def _end_of_speech(self, packets: Packets) -> None:
        """Note when the speech ended, all of which was sent, and the seconds of audio sent."""
        self.sent_s = packets.sent[-1][1]
        self.speech_ended = round(packets.speech_ends * NS) if packets.speech_ends else time.perf_counter_ns()

    def _while_speaking(self, packets: Packets, socket: Socket, dialect: Dialect) -> None:
        """Process events until all packets are sent, or the rest need not be sent."""
        pace, turn = self._realtime.options.pace, Turn()
        if pace:
            PACER.add(packets)
        while not packets.ended and socket.is_open and self.heard.error is None:
            if not pace:
                packets.send(time.perf_counter())
                turn.give()
            socket.listen(None if pace else 0.0)
            self._hear(socket, dialect)

    def _hear(self, socket: Socket, dialect: Dialect) -> None:
        """Process the events that have arrived."""
        if self.packets is not None:
            self.heard.ends = self.packets.commits + self.is_ended
        self._look_for_end(dialect)
        while socket.messages:
            data, at = socket.messages.popleft()
            try:
                self._take(read_event(data), dialect, at)
            except ProtocolError:
                socket.messages.clear()
                raise
            self._look_for_end(dialect)

    def _look_for_end(self, dialect: Dialect) -> None:
        # If the server detects the end of a turn, its text may arrive before the following silence is sent.
        if self.heard.final_at is None and self.audio_ended is not None and dialect.is_final(self.heard):
            self._finalise()

    def _take(self, event: Event, dialect: Dialect, at: int) -> None:
        """Process an event. Raises ProtocolError."""
        heard, self.over = self.heard, at
        heard.note(event)
        if heard.final_at is not None:
            return
        if event.type != "error":
            # Events before any audio do not belong to this utterance.
            if self.packets is not None and self.packets.sent:
                dialect.hear(event, heard, at)
        elif dialect.refuses_end(event) and (heard.turns or heard.items):
            heard.refused += 1
        else:
            heard.error = heard.error or error_words(event)

    def _finalise(self) -> None:
        """Note when the text became final, at the earliest at the end of speech: before that, nobody waits for it."""
        self.heard.final_at = max(self.heard.done_at, self.speech_ended or 0)

    def _await_final(self, session: RealtimeSession) -> None:
        socket, heard = session.socket, self.heard
        stall = self.config.limits.stall
        self._hear(socket, session.dialect)
        while heard.final_at is None and socket.is_open:
            # Only the server knows how many turns it will detect.
            is_over = heard.turns > 0 and heard.is_settled
            is_early = heard.is_early and not session.utterances
            since = max(self.over or 0, self.audio_ended or self.began) / NS
            until = since + (min(stall, LINGER_S) if heard.error is not None or is_over or is_early else stall)
            if time.perf_counter() < until:
                socket.listen(until)
                self._hear(socket, session.dialect)
            elif is_over and heard.error is None:
                self._finalise()
            elif is_early and heard.error is None:
                raise Failure("no_final", EARLY)
            elif self._look_again(socket):
                self._hear(socket, session.dialect)
            else:
                raise Failure("stalled", "no event within the stall timeout")
        if self.packets is not None:
            self._do_without_silence(self.packets)
        self._conclude()

    def _conclude(self) -> None:
        heard, socket = self.heard, self.socket
        code = None if socket is None else socket.close_code
        reason = "" if socket is None else socket.close_reason
        if heard.final_at is None and code not in (None, 1000, 1001):
            what = "without a close frame" if code == 1006 else f"with code {code}"
            self.outcome = f"closed_{code}"
            self.error = ": ".join(filter(None, (heard.error, f"the server closed the session {what}", reason)))
        elif heard.error is not None:
            self.outcome, self.error = self._of_error(), heard.error
        elif heard.failed is not None:
            self.outcome, self.error = "failed", heard.failed
        elif heard.final_at is None:
            self.outcome, self.error = "no_final", ": ".join(filter(None, ("closed before the final text", reason)))
        elif not heard.text.strip():
            self.outcome, self.error = "empty", "no text"
        else:
            self.outcome, self.error = "ok", None

    def _of_error(self) -> str:
        return "stream_error" if self.packets is not None and self.packets.sent else "rejected"

    def record(self) -> Record:
        heard = self.heard
        sent = self.packets.sent if self.packets is not None else []
        start = round(sent[0][0] * NS) if sent else self.began
        final, ended, due = heard.final_at, self.audio_ended, self.request.due
        events = Counter[str]()
        for name, count in heard.events.items():
            events[self.config.intake.line(name)] += count  # types that differ only in a secret become one
        over = max((at for at in (self.over, final, *heard.times[-1:]) if at is not None), default=None)
        return self.make_record(
            start,
            heard,
            lag=None if due is None else (self.began - due) / NS,
            stream_end=None if over is None or over < start else seconds(start, over),
            dialect=self.dialect,
            session=self.session_id,
            setup=None if self.setup is None else self.setup / NS,
            ttfs=None if self.speech_ended is None else seconds(self.speech_ended, final),
            done_latency=None if final is None or ended is None or final < ended else seconds(ended, final),
            rtf_live=None if final is None or not self.sent_s else (final - start) / NS / self.sent_s,
            send_lag=_spread(self.packets.lags) if self.packets is not None and sent else None,
            backpressure=max((self.socket.blocked_s if self.socket else 0.0) - self.blocked_before, 0.0),
            packets=len(sent),
            close_code=None if self.socket is None else self.socket.close_code,
            events=events,
            partial_lag=_partial_lags(heard.positions, sent),
            revised=heard.revised,
            backlog=self.backlog,
        )


def _partial_lags(positions: list[tuple[int, float]], sent: list[tuple[float, float]]) -> list[float]:
    """For each text, by its time in nanoseconds and its end in the audio: seconds since that audio was sent."""
    ends = [end_s for _, end_s in sent]
    places = [(at, bisect_left(ends, position - 1e-6)) for at, position in positions]
    return [at / NS - sent[place][0] for at, place in places if place < len(sent)]


def _spread(lags: list[float]) -> SendLag:
    ordered = np.sort(lags)  # np.percentile takes ten times as long
    p50, p99 = np.interp([0.5, 0.99], np.linspace(0, 1, len(lags)), ordered).tolist()
    return {"p50": p50, "p99": p99, "max": max(lags)}

"""Send one utterance in a realtime session, and make a record of it. Every utterance has exactly one record.

Packet i is due when a microphone would have filled it: at the beginning + (i + 1) x packet / pace, on an absolute
clock. The audio is resampled to the dialect's rate before the clock starts.
"""

from __future__ import annotations

import contextlib
import random
import time
from bisect import bisect_left
from collections import Counter

import numpy as np
from requests import Session

from asr_load.apis.realtime import RealtimeOptions, RealtimeRequest
from asr_load.apis.transcript import ServerEvent, Transcript, error_text, read_event
from asr_load.apis.transcription_request import TranscriptionRequest
from asr_load.http.attempt import Attempt, ExchangeConfig
from asr_load.http.connection import UserConnection, place_of
from asr_load.http.exchange import exchange, over_http, prepare
from asr_load.http.failure import Failure
from asr_load.http.loop import TimeSlice
from asr_load.realtime.pacer import Packets, Playback
from asr_load.realtime.session import RealtimeSession
from asr_load.realtime.socket import NO_FRAME, Socket
from asr_load.realtime.speech import Speech, speech_of
from asr_load.stream.reader import ProtocolError
from asr_load.stream.record import Record, SendLag
from asr_load.stream.timing import NS, seconds

SESSION_CHARS = 100
"""Maximum length of a session's id in a record."""

EARLY = "the server sent its final text before the audio had ended, and no other after it"

LINGER_S = 2.0
"""Seconds to wait for a server that has probably sent everything: after an error, because its close or final text may
explain it; after the last turn that it detected; and after a final text that was too early."""

OMITTED_HEADERS = ("accept", "accept-encoding", "connection", "content-length", "content-type")
"""Headers of requests that a handshake omits or sets itself."""


class Utterance(Attempt):
    """An attempt to transcribe one clip in a session. Times are perf_counter nanoseconds."""

    def __init__(
        self,
        client: Session,
        user_connection: UserConnection,
        request: TranscriptionRequest,
        realtime: RealtimeRequest,
        *,
        config: ExchangeConfig,
        playback: Playback,
    ) -> None:
        super().__init__(user_connection, request, config)
        self._client, self._realtime, self._playback = client, realtime, playback
        self.session: RealtimeSession | None = None
        self.transcript = Transcript()
        self.packets: Packets | None = None
        self.setup: int | None = None
        """When a new session was ready for audio."""
        self.speech_ended: int | None = None
        self.audio_ended: int | None = None
        """When the speech and the silence after it were sent."""
        self.backlog: float | None = None
        self._blocked_before_s = 0.0

    def run(self) -> BaseException | None:
        reraise = super().run()
        if self.outcome == "rejected" or self.outcome.startswith("ws_"):
            self.user_connection.pause("" if self.session is None else self.session.socket.retry_after)
        return reraise

    def send(self) -> None:
        options, stall_s = self._realtime.options, self.config.limits.stall
        session, self.user_connection.session = self.user_connection.session, None
        if isinstance(session, RealtimeSession) and session.url == self.request.url and session.can_go_on():
            self.session, self.transcript = session, Transcript(session.items)
            speech = speech_of(self._realtime, session.dialect.rates, self._playback.resampled)
        else:
            if session is not None:
                session.close()
            session = self._connect()
            session.begin(options, place_of(session.url).host, self.transcript, stall_s)
            # Do everything slow before the clock starts.
            speech = speech_of(self._realtime, session.dialect.rates, self._playback.resampled)
            session.configure(options, speech.rate, self.transcript, stall_s)
            self.setup = time.perf_counter_ns()
        self._blocked_before_s = session.socket.blocked_s
        self._send_speech(session, speech, options)
        self.await_final(session)

    def _connect(self) -> RealtimeSession:
        """Connect and shake hands. Raises Failure and ProtocolError."""
        url, limit_s, user_connection = self.request.url, self.config.limits.connect, self.user_connection
        transport = self.config.transport.for_client(self._client, over_http(url))
        connection = user_connection.connection_for(place_of(url), transport)
        connection.close()
        until = time.perf_counter() + limit_s
        user_connection.connect_s = connection.open(limit_s)
        self.session = RealtimeSession(Socket(connection, user_connection.reader_factory, url), url)
        self._playback.pacer.send_due()
        prepared = prepare(self._client, user_connection, self.request, transport)  # with the locustfile's headers
        headers = {name: str(value) for name, value in prepared.headers.items() if name.lower() not in OMITTED_HEADERS}
        self.session.socket.shake_hands({**headers, **self.request.own_headers}, until)
        self._playback.pacer.send_due()
        return self.session

    def _send_speech(self, session: RealtimeSession, speech: Speech, options: RealtimeOptions) -> None:
        """Send all packets and process events meanwhile, until the rest need not be sent."""
        socket, dialect, pace, time_slice = session.socket, session.dialect, options.pace, TimeSlice()
        for message in dialect.begin():
            socket.send(message)
        # A random phase, because users begin together but microphones are not synchronized.
        begins = time.perf_counter() + (random.random() * options.packet_s / pace if pace else 0.0)
        self.packets = packets = Packets(socket, dialect, speech, packet_s=options.packet_s, pace=pace, begins=begins)
        if pace:
            self._playback.pacer.add(packets)
        try:
            while not packets.ended and socket.is_open and self.transcript.error is None:
                if not pace:
                    packets.send(time.perf_counter())
                    time_slice.give()
                socket.listen(None if pace else 0.0)
                self.process_events(session)
            if packets.error is not None:
                raise packets.error
            if not packets.ended:
                return
        finally:
            packets.ended = True
        self._end_speech(packets)
        self.audio_ended = time.perf_counter_ns()
        if self.transcript.positions:
            self.backlog = max(speech.length_s - self.transcript.positions[-1][1], 0.0)
        if self.transcript.needs_end or not (dialect.name == "openai" and options.server_vad):
            packets.finish()

    def _end_speech(self, packets: Packets) -> None:
        self.speech_ended = round(packets.speech_ends * NS) if packets.speech_ends else time.perf_counter_ns()

    def process_events(self, session: RealtimeSession) -> None:
        """Process the events that have arrived. Raises ProtocolError."""
        messages = session.socket.messages
        if self.packets is not None:
            self.transcript.ends = self.packets.commits
        self._check_final(session)
        while messages:
            data, at = messages.popleft()
            try:
                self._process(read_event(data), session, at)
            except ProtocolError:
                messages.clear()
                raise
            self._check_final(session)

    def _check_final(self, session: RealtimeSession) -> None:
        # If the server detects the end of a turn, its text may arrive before the following silence is sent.
        if self.audio_ended is not None and session.dialect.is_final(self.transcript):
            self._finalise()

    def _process(self, event: ServerEvent, session: RealtimeSession, at: int) -> None:
        transcript = self.transcript
        transcript.count(event, at)
        if transcript.final_at is not None:
            return
        if event.type != "error":
            # Events before any audio do not belong to this utterance.
            if self.packets is not None and self.packets.sent:
                session.dialect.apply(event, transcript, at)
        elif session.dialect.refuses_end(event) and (transcript.turns or transcript.items):
            transcript.refused += 1
        else:
            transcript.error = transcript.error or error_text(event)

    def _finalise(self) -> None:
        """Note when the text became final, at the earliest at the end of speech: before that, nobody waits for it."""
        if self.transcript.final_at is None:
            self.transcript.final_at = max(self.transcript.done_at, self.speech_ended or 0)

    def await_final(self, session: RealtimeSession) -> None:
        """Wait for the final text, and set the outcome. Raises Failure and ProtocolError."""
        transcript, stall_s = self.transcript, self.config.limits.stall
        self.process_events(session)
        while transcript.final_at is None and session.socket.is_open:
            # Only the server knows how many turns it will detect.
            is_over = transcript.turns > 0 and transcript.is_settled
            is_early = transcript.is_early and not session.utterances
            lingers = transcript.error is not None or is_over or is_early
            since = max(transcript.last_at, self.audio_ended or self.began) / NS
            if session.socket.wait_for_message(since + (min(stall_s, LINGER_S) if lingers else stall_s)):
                self.process_events(session)
            elif is_over and transcript.error is None:
                self._finalise()
            elif is_early and transcript.error is None:
                raise Failure("no_final", EARLY)
            else:
                raise Failure("stalled", "no event within the stall timeout")
        self._do_without_silence(session)
        self._conclude()

    def _do_without_silence(self, session: RealtimeSession) -> None:
        """Treat the text as final if the server has ended the turn and only silence was left to send."""
        transcript, packets = self.transcript, self.packets
        if transcript.final_at is None and packets and packets.has_spoken and session.dialect.is_final(transcript):
            self._end_speech(packets)
            self._finalise()

    def fail(self, failure: Failure) -> None:
        transcript = self.transcript
        if self.session is not None and self.packets is not None:
            # The final text may have arrived unread. Look without waiting.
            with contextlib.suppress(Failure, ProtocolError):
                if failure.outcome != "protocol":  # ignore everything after a protocol error
                    self.session.socket.listen(0.0)
            with contextlib.suppress(ProtocolError):
                self.process_events(self.session)
            self._do_without_silence(self.session)
        if transcript.final_at is not None or transcript.error is not None or transcript.failed is not None:
            self._conclude()
        else:
            self.outcome, self.error = failure.outcome, str(failure)

    def _conclude(self) -> None:
        """Set the outcome by the server's events and its close code."""
        transcript, socket = self.transcript, self.session and self.session.socket
        code, reason = (socket.close_code, socket.close_reason) if socket else (None, "")
        if transcript.final_at is None and code not in (None, 1000, 1001):
            end = "without a close frame" if code == NO_FRAME else f"with code {code}"
            self.outcome = f"closed_{code}"
            self.error = ": ".join(filter(None, (transcript.error, f"the server closed the session {end}", reason)))
        elif transcript.error is not None:
            self.outcome = "stream_error" if self.packets is not None and self.packets.sent else "rejected"
            self.error = transcript.error
        elif transcript.failed is not None:
            self.outcome, self.error = "failed", transcript.failed
        elif transcript.final_at is None:
            self.outcome, self.error = "no_final", ": ".join(filter(None, ("closed before the final text", reason)))
        elif not transcript.text.strip():
            self.outcome, self.error = "empty", "no text"
        else:
            self.outcome, self.error = "ok", None

    def leave(self, *, keep: bool) -> None:
        """Close the session, or keep it for the user's next utterance."""
        if (session := self.session) is None:
            return
        session.utterances += 1
        session.items |= self.transcript.items.keys()
        if self.outcome in ("unfinished", "timeout"):
            session.socket.drop()
        elif keep and not session.dialect.alone and session.utterances < self._realtime.options.utterances:
            self.user_connection.session = session
        else:
            session.close()

    def record(self) -> Record:
        """The record of the utterance, as far as it got."""
        transcript, intake = self.transcript, self.config.intake
        session, packets, due = self.session, self.packets, self.request.due
        sent = packets.sent if packets is not None else []
        start = round(sent[0][0] * NS) if sent else self.began
        final, ended, last_at = transcript.final_at, self.audio_ended, max(transcript.last_at, transcript.final_at or 0)
        sent_s = sent[-1][1] if self.speech_ended is not None else 0.0
        events = Counter[str]()
        for name, count in transcript.events.items():
            events[intake.line(name)] += count  # types that differ only in a secret become one
        return self.make_record(
            start,
            transcript,
            lag=None if due is None else (self.began - due) / NS,
            stream_end=seconds(start, last_at) if last_at >= start else None,
            dialect="" if session is None else session.dialect.name,
            session="" if session is None else intake.line(session.id, SESSION_CHARS),
            setup=seconds(self.began, self.setup),
            ttfs=None if self.speech_ended is None else seconds(self.speech_ended, final),
            done_latency=None if final is None or ended is None or final < ended else seconds(ended, final),
            rtf_live=None if final is None or not sent_s else (final - start) / NS / sent_s,
            send_lag=_spread(packets.lags) if packets is not None and sent else None,
            backpressure=max((0.0 if session is None else session.socket.blocked_s) - self._blocked_before_s, 0.0),
            packets=len(sent),
            close_code=None if session is None else session.socket.close_code,
            events=events,
            partial_lag=_partial_lags(transcript.positions, sent),
            revised=transcript.revised,
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


def transmit(
    client: Session,
    user_connection: UserConnection,
    request: TranscriptionRequest,
    config: ExchangeConfig,
    playback: Playback,
) -> tuple[Record, BaseException | None]:
    """Send a request over HTTP or a realtime session. Returns its record and the exception that the caller must
    reraise, or None."""
    if request.realtime is None:
        return exchange(client, user_connection, request, config)
    playback.pacer.send_due()
    utterance = Utterance(client, user_connection, request, request.realtime, config=config, playback=playback)
    reraise = utterance.run()
    playback.pacer.send_due()
    record = utterance.record()
    try:
        utterance.leave(keep=record.ok)
    except BaseException as error:  # keep the record, whatever ends the test or the connection now
        if utterance.session is not None:
            utterance.session.socket.drop()
        reraise = reraise or (None if isinstance(error, Exception) else error)
    return record, reraise

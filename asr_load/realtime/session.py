"""A realtime session: learn the server's dialect, configure the session, and keep it for the next utterance."""

from __future__ import annotations

import time

from asr_load.apis.dialects import Dialect, choose
from asr_load.apis.realtime import RealtimeOptions
from asr_load.apis.transcript import ServerEvent, Transcript, error_text, read_event, text_in
from asr_load.http.failure import Failure
from asr_load.realtime.socket import Socket
from asr_load.stream.numbers import number_in
from asr_load.stream.reader import ProtocolError

GUESS = "assumed SGLang's dialect by the first event; if the server speaks OpenAI's, add --realtime-dialect openai"


class RealtimeSession:
    """A session on a WebSocket, which takes one utterance after another."""

    def __init__(self, socket: Socket, url: str) -> None:
        self.socket, self.url = socket, url
        self.dialect = Dialect()
        """The server's dialect; one without a name before its first event."""
        self.id = ""
        """The server's id of the session."""
        self.utterances = 0
        """Number of finished utterances."""
        self.items: set[str] = set()
        """Ids of the items of finished utterances."""

    def begin(self, options: RealtimeOptions, host: str, transcript: Transcript, stall_s: float) -> None:
        """Learn the dialect from the first event. Raises Failure and ProtocolError."""
        created = self._next_event(transcript, stall_s)
        self.dialect = choose(options.dialect, created, host, options.found)
        id = created.session.get("id") if isinstance(created.session, dict) else created.id
        self.id = text_in(id) or ""
        if options.server_vad and not self.dialect.has_vad:
            hint = f" ({GUESS})" if options.is_guess(self.dialect.name) else ""
            raise Failure("rejected", f"{self.dialect.name} cannot detect turns: use --turn-detection none{hint}")

    def configure(self, options: RealtimeOptions, rate: int, transcript: Transcript, stall_s: float) -> None:
        """Configure the session for audio of this sample rate in Hz. Raises Failure and ProtocolError."""
        for message in self.dialect.configure(options, rate):
            self.socket.send(message)
        try:
            while self.dialect.acknowledges and self._next_event(transcript, stall_s).type != "session.updated":
                pass
        except Failure as failure:
            if failure.outcome == "rejected" and options.is_guess(self.dialect.name):
                raise Failure("rejected", f"{failure} ({GUESS})") from None
            raise

    def _next_event(self, transcript: Transcript, stall_s: float) -> ServerEvent:
        """Wait for the next event before the audio. Raises Failure, also for an error event, and ProtocolError."""
        socket = self.socket
        if not socket.wait_for_message(time.perf_counter() + stall_s):
            raise Failure("stalled", "no event within the stall timeout, before the session was ready")
        if not socket.messages:
            why = f"closed with code {socket.close_code} before the session was ready: {socket.close_reason}"
            raise Failure("rejected", why.rstrip(": "))
        data, at = socket.messages.popleft()
        event = read_event(data)
        transcript.count(event, at)
        if (index := number_in(event.event_index)) is not None:
            transcript.index = index
        if event.type == "error":
            raise Failure("rejected", error_text(event))
        return event

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

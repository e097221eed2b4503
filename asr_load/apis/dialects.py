"""The four dialects of /v1/realtime: the client's messages and the meaning of the server's events. No I/O.

From the sources of vLLM 0.32 and 0.33, SGLang 0.5.23, sglang-omni and the `openai` package 3.57 (November 2026).
Unknown fields and events are ignored, because servers add some with each release.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from asr_load.apis.realtime import RealtimeOptions
from asr_load.apis.transcript import ServerEvent, Transcript, error_text, text_in, tokens_in
from asr_load.stream.numbers import number_in
from asr_load.stream.reader import ProtocolError

RATE = 16000
"""Sample rate in Hz of all dialects except OpenAI's."""

OPENAI_HOST = "openai.com"


_encode = msgspec.json.encode


class Dialect:
    """A dialect: its properties, the client's messages, and the handling of events."""

    name: ClassVar[str] = ""
    rates: ClassVar[tuple[int, ...]] = (RATE,)
    """Supported sample rates in Hz; clips of other rates are resampled to the first."""
    acknowledges: ClassVar[bool] = True
    """Whether the server acknowledges the configuration with `session.updated`."""
    has_vad: ClassVar[bool] = False
    """Whether the server can detect the ends of turns."""
    alone: ClassVar[bool] = False
    """Whether a session has only one transcript."""
    longest_s: ClassVar[float | None] = None
    """Maximum seconds of audio between two commits."""

    def configure(self, options: RealtimeOptions, rate: int) -> list[bytes]:
        raise NotImplementedError

    def begin(self) -> list[bytes]:
        """Messages before the first packet."""
        return []

    def append(self, audio_b64: bytes) -> bytes:
        """The message of a packet."""
        return b'{"type":"input_audio_buffer.append","audio":"%b"}' % audio_b64

    def commit(self) -> bytes:
        """The message that ends a part of the audio."""
        return b'{"type":"input_audio_buffer.commit"}'

    def end(self) -> bytes:
        """The message that ends the audio."""
        return self.commit()

    def apply(self, event: ServerEvent, transcript: Transcript, at: int) -> None:
        """Apply an event to the utterance. Raises ProtocolError."""
        raise NotImplementedError

    def is_final(self, transcript: Transcript) -> bool:
        """Whether the transcript is final."""
        return transcript.is_concluded

    def refuses_end(self, event: ServerEvent) -> bool:  # noqa: ARG002
        """Whether an error only reports that no audio was left to commit."""
        return False


class Vllm(Dialect):
    """vLLM's dialect: the first commit starts the generation, the final one ends it."""

    name = "vllm"
    acknowledges = False

    def configure(self, options: RealtimeOptions, rate: int) -> list[bytes]:  # noqa: ARG002
        return [_encode({"type": "session.update", "model": options.model or "default"})]

    def begin(self) -> list[bytes]:
        return [self.commit()]

    def end(self) -> bytes:
        return b'{"type":"input_audio_buffer.commit","final":true}'

    def apply(self, event: ServerEvent, transcript: Transcript, at: int) -> None:
        if event.type == "transcription.delta":
            transcript.append("", text_in(event.delta) or "", at)
        elif event.type == "transcription.done":
            _conclude(event, transcript, at)


def _conclude(event: ServerEvent, transcript: Transcript, at: int) -> None:
    """Apply the transcript of a whole utterance. If it arrives before the audio has ended, it repeats the previous
    utterance, which only its time shows."""
    if transcript.ends:
        transcript.conclude(text_in(event.text), at, tokens_in(event.usage))
    else:
        transcript.is_early = True


_TEXT = "conversation.item.input_audio_transcription."
_EMPTY = "input_audio_buffer_commit_empty"


class OpenAi(Dialect):
    """OpenAI's dialect: each item has deltas and is completed."""

    name = "openai"
    rates: ClassVar[tuple[int, ...]] = (24000,)
    has_vad = True

    def configure(self, options: RealtimeOptions, rate: int) -> list[bytes]:
        transcription = {"model": options.model or None}
        if options.language:
            transcription["language"] = options.language
        audio = {
            "format": {"type": "audio/pcm", "rate": rate},
            "transcription": transcription,
            "turn_detection": {"type": "server_vad"} if options.server_vad else None,
        }
        session = {"type": "transcription", "audio": {"input": audio}}
        return [_encode({"type": "session.update", "session": session})]

    def apply(self, event: ServerEvent, transcript: Transcript, at: int) -> None:
        named = text_in(event.item_id)
        if named in transcript.earlier:
            return
        id = named or f"#{transcript.done}"  # without an id, number an item by those done before it
        if event.type.startswith(_TEXT):
            self._apply_text(event, transcript, id, at)
            return
        match event.type:
            case "input_audio_buffer.speech_started":
                transcript.speaking = True
            case "input_audio_buffer.speech_stopped":
                transcript.speaking = False
                transcript.turns += 1
            case "input_audio_buffer.committed":
                transcript.speaking = False
                transcript.commit(id)
                transcript.item(id).previous = text_in(event.previous_item_id)
            case "conversation.item.created" | "conversation.item.added" if isinstance(event.item, dict):
                if (named := text_in(event.item.get("id"))) and named not in transcript.earlier:
                    transcript.item(named).previous = text_in(event.previous_item_id)

    def _apply_text(self, event: ServerEvent, transcript: Transcript, id: str, at: int) -> None:
        match event.type.removeprefix(_TEXT):
            case "delta":
                transcript.append(id, text_in(event.delta) or "", at)
            case "completed" if text_in(event.item_id) or transcript.done < transcript.expected:
                transcript.finish(id, text_in(event.transcript), at, tokens_in(event.usage))
            case "completed":
                transcript.is_early = transcript.is_early or not transcript.expected
            case "failed":
                transcript.failed = transcript.failed or error_text(event)
                transcript.finish(id, None, at)

    def is_final(self, transcript: Transcript) -> bool:
        return transcript.is_settled and transcript.done >= transcript.expected

    def refuses_end(self, event: ServerEvent) -> bool:
        error = event.error if isinstance(event.error, dict) else {}
        return _EMPTY in (event.code, error.get("code"))


class Sglang(OpenAi):
    """SGLang's dialect: OpenAI's, but without turn detection, and with a buffer of 60 s."""

    name = "sglang"
    rates = (16000, 24000, 48000)
    has_vad = False
    longest_s = 50.0  # less than its buffer of 60 s


class Omni(Dialect):
    """sglang-omni's dialect: texts of segments replace earlier ones, and a session has one transcript."""

    name = "omni"
    has_vad = True
    alone = True

    def configure(self, options: RealtimeOptions, rate: int) -> list[bytes]:  # noqa: ARG002
        session: dict[str, Any] = {"turn_detection": {"type": "server_vad"} if options.server_vad else None}
        if options.language:
            session["language"] = options.language
        return [_encode({"type": "session.update", "session": session})]

    def end(self) -> bytes:
        return b'{"type":"transcription.done"}'

    def apply(self, event: ServerEvent, transcript: Transcript, at: int) -> None:
        if (index := number_in(event.event_index)) is not None:
            if index <= transcript.index:
                raise ProtocolError(f"event_index {index} after {transcript.index}")
            transcript.index = index
        if event.type == "transcription.segment" and (text := text_in(event.text)) is not None:
            segment = str(event.segment_id)
            if (start_ms := number_in(event.audio_start_ms)) is not None:
                transcript.item(segment).start_ms = start_ms
            if (end_ms := number_in(event.audio_end_ms)) is not None:
                transcript.positions.append((at, end_ms / 1e3))
            transcript.replace(segment, text, at)
        elif event.type == "transcription.completed":
            _conclude(event, transcript, at)


DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (Vllm(), Sglang(), Omni(), OpenAi())}


def detect(created: ServerEvent, host: str) -> str:
    """The dialect of a server, by its first event; empty if unknown."""
    session = created.session if isinstance(created.session, dict) else {}
    if created.type != "session.created":
        return ""
    if isinstance(created.created, int):
        return "vllm"
    if session.get("intent") == "transcription" or created.event_index is not None:
        return "omni"
    if session.get("object") == "realtime.transcription_session" or session.get("type") == "transcription":
        return "openai" if host == OPENAI_HOST or host.endswith(f".{OPENAI_HOST}") else "sglang"
    return ""


ALIKE = frozenset(("sglang", "openai"))
"""Dialects with the same first event, which only the response to the configuration distinguishes."""


def choose(option: str, created: ServerEvent, host: str, accepted: str = "") -> Dialect:
    """Choose the dialect of a session by the option and its first event. `accepted`: the one of ALIKE that the server
    accepted in a trial session. Raises ProtocolError if the server speaks another dialect than the option names."""
    detected = detect(created, host)
    if option == "auto":
        if not detected:
            raise ProtocolError(
                f"unknown dialect: the first event is {created.type}; choose one with --realtime-dialect"
            )
        return DIALECTS[accepted if accepted and detected == "sglang" else detected]
    if detected and detected != option and not {detected, option} <= ALIKE:
        raise ProtocolError(f"the server speaks {detected}, not {option}: use --realtime-dialect {detected} or auto")
    return DIALECTS[option]

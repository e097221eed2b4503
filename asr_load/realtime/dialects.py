"""The four dialects of /v1/realtime: a client's messages in each, and the meaning of events. Nothing here does I/O.

Read from the sources of vLLM 0.32 and 0.33, SGLang 0.5.23, sglang-omni and the `openai` package 3.57 (November 2026).
Fields and events that are not known are passed over, as servers add some with each release.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from asr_load.realtime.heard import Event, Heard, error_words, text_in, tokens_in
from asr_load.stream.numbers import number_in
from asr_load.stream.reader import ProtocolError

RATE = 16000
"""Samples per second that all dialects but OpenAI's take."""

OPENAI_HOST = "openai.com"


@dataclass(frozen=True)
class LiveOptions:
    """How speech is sent, and what is asked for."""

    dialect: str
    """One of DIALECTS, or auto."""
    packet_s: float
    pace: float
    """1 is as spoken, 2 twice as fast, 0 as fast as the socket takes it."""
    silence_s: float
    """After the speech."""
    server_vad: bool
    """Whether the server is to find the ends of turns."""
    utterances: int
    """On one connection."""
    model: str
    """Empty: whatever the server has."""
    language: str
    found: str = ""
    """The one of ALIKE that a trial session was accepted in, for the dialect auto; empty where none was needed."""

    def is_guess(self, dialect: Dialect) -> bool:
        """Whether a session may speak another dialect than this one, which it was taken for by its first event."""
        return self.dialect == "auto" and not self.found and dialect.name == "sglang"

    @property
    def told(self) -> dict[str, Any]:
        """What run.json says of it, beside the model and the language."""
        names = ("dialect", "packet_s", "pace", "silence_s", "server_vad", "utterances")
        return {name: getattr(self, name) for name in names}


_encode = msgspec.json.encode


class Dialect:
    """A dialect: what it is known by, and what is sent."""

    name: ClassVar[str]
    rates: ClassVar[tuple[int, ...]] = (RATE,)
    """Samples per second that it takes; the first is what other clips are resampled to."""
    acknowledges: ClassVar[bool] = True
    """Whether `session.updated` answers the configuration."""
    has_vad: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    """Whether a session has one transcript and no more."""
    longest_s: ClassVar[float | None] = None
    """Of audio between two commits."""

    def configure(self, options: LiveOptions, rate: int) -> list[bytes]:
        raise NotImplementedError

    def begin(self) -> list[bytes]:
        """Before the first packet."""
        return []

    def append(self, audio_b64: bytes) -> bytes:
        """A packet."""
        return b'{"type":"input_audio_buffer.append","audio":"%b"}' % audio_b64

    def commit(self) -> bytes:
        """What ends a part of the audio."""
        return b'{"type":"input_audio_buffer.commit"}'

    def end(self) -> bytes:
        """What ends all of it."""
        return self.commit()

    def hear(self, event: Event, heard: Heard, at: int) -> None:
        """Take what an event says of the utterance. Raises ProtocolError."""
        raise NotImplementedError

    def is_final(self, heard: Heard) -> bool:
        """Whether nothing more is to come."""
        return heard.is_concluded

    def refuses_end(self, event: Event) -> bool:  # noqa: ARG002
        """Whether an error only says that no audio was left to commit."""
        return False


class Vllm(Dialect):
    """vLLM's: the first commit starts the generation, the final one ends it."""

    name = "vllm"
    acknowledges = False

    def configure(self, options: LiveOptions, rate: int) -> list[bytes]:  # noqa: ARG002
        return [_encode({"type": "session.update", "model": options.model or "default"})]

    def begin(self) -> list[bytes]:
        return [self.commit()]

    def end(self) -> bytes:
        return b'{"type":"input_audio_buffer.commit","final":true}'

    def hear(self, event: Event, heard: Heard, at: int) -> None:
        if event.type == "transcription.delta":
            heard.append("", text_in(event.delta) or "", at)
        elif event.type == "transcription.done":
            _conclude(event, heard, at)


def _conclude(event: Event, heard: Heard, at: int) -> None:
    """Take the transcript of a whole utterance. One that comes before the audio has ended is that of the utterance
    before, once more: nothing but its time tells the two apart."""
    if heard.ends:
        heard.conclude(text_in(event.text), at, tokens_in(event.usage))
    else:
        heard.is_early = True


_TEXT = "conversation.item.input_audio_transcription."
_EMPTY = "input_audio_buffer_commit_empty"


class OpenAi(Dialect):
    """OpenAI's: items, of which each has deltas and is completed."""

    name = "openai"
    rates: ClassVar[tuple[int, ...]] = (24000,)
    has_vad = True

    def configure(self, options: LiveOptions, rate: int) -> list[bytes]:
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

    def hear(self, event: Event, heard: Heard, at: int) -> None:
        named = text_in(event.item_id)
        if named in heard.earlier:
            return
        id = named or f"#{heard.done}"  # without an id, an item is known by how many are done before it
        if event.type.startswith(_TEXT):
            self._hear_text(event, heard, id, at)
            return
        match event.type:
            case "input_audio_buffer.speech_started":
                heard.speaking = True
            case "input_audio_buffer.speech_stopped":
                heard.speaking = False
                heard.turns += 1
            case "input_audio_buffer.committed":
                heard.speaking = False
                heard.commit(id)
                heard.item(id).previous = text_in(event.previous_item_id)
            case "conversation.item.created" | "conversation.item.added" if isinstance(event.item, dict):
                if (named := text_in(event.item.get("id"))) and named not in heard.earlier:
                    heard.item(named).previous = text_in(event.previous_item_id)

    def _hear_text(self, event: Event, heard: Heard, id: str, at: int) -> None:
        match event.type.removeprefix(_TEXT):
            case "delta":
                heard.append(id, text_in(event.delta) or "", at)
            case "completed" if text_in(event.item_id) or heard.done < heard.expected:
                heard.finish(id, text_in(event.transcript), at, tokens_in(event.usage))
            case "completed":
                heard.is_early = heard.is_early or not heard.expected
            case "failed":
                heard.failed = heard.failed or error_words(event)
                heard.finish(id, None, at)

    def is_final(self, heard: Heard) -> bool:
        return heard.is_settled and heard.done >= heard.expected

    def refuses_end(self, event: Event) -> bool:
        error = event.error if isinstance(event.error, dict) else {}
        return _EMPTY in (event.code, error.get("code"))


class Sglang(OpenAi):
    """SGLang's, which is OpenAI's without turns of its own, and with a buffer of 60 s."""

    name = "sglang"
    rates = (16000, 24000, 48000)
    has_vad = False
    longest_s = 50.0  # of the 60 that it holds


class Omni(Dialect):
    """sglang-omni's: segments whose text is replaced, and one transcript for a session."""

    name = "omni"
    has_vad = True
    alone = True

    def configure(self, options: LiveOptions, rate: int) -> list[bytes]:  # noqa: ARG002
        session: dict[str, Any] = {"turn_detection": {"type": "server_vad"} if options.server_vad else None}
        if options.language:
            session["language"] = options.language
        return [_encode({"type": "session.update", "session": session})]

    def end(self) -> bytes:
        return b'{"type":"transcription.done"}'

    def hear(self, event: Event, heard: Heard, at: int) -> None:
        if (index := number_in(event.event_index)) is not None:
            if index <= heard.index:
                raise ProtocolError(f"event_index {index} after {heard.index}")
            heard.index = index
        if event.type == "transcription.segment" and (text := text_in(event.text)) is not None:
            segment = str(event.segment_id)
            if (start_ms := number_in(event.audio_start_ms)) is not None:
                heard.item(segment).start_ms = start_ms
            if (end_ms := number_in(event.audio_end_ms)) is not None:
                heard.positions.append((at, end_ms / 1e3))
            heard.replace(segment, text, at)
        elif event.type == "transcription.completed":
            _conclude(event, heard, at)


DIALECTS: dict[str, Dialect] = {each.name: each for each in (Vllm(), Sglang(), Omni(), OpenAi())}


def told_by(created: Event, host: str) -> str:
    """The dialect of a server, by its first event; empty where it is none that is known."""
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
"""Dialects with the same first event: only the answer to the configuration tells them apart."""


def choose(named: str, created: Event, host: str, found: str = "") -> Dialect:
    """The dialect of a session. `named` is that of the options; `found`, the one of ALIKE that a trial session was
    accepted in. Raises ProtocolError where the server speaks another dialect than the one that was named."""
    told = told_by(created, host)
    if named == "auto":
        if not told:
            raise ProtocolError(f"its first event, {created.type}, is of no known dialect: name it: --realtime-dialect")
        return DIALECTS[found if found and told == "sglang" else told]
    if told and told != named and not {told, named} <= ALIKE:
        raise ProtocolError(f"the server speaks {told}, not {named}: --realtime-dialect {told}, or auto")
    return DIALECTS[named]

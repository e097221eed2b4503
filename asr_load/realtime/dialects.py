"""The four dialects of /v1/realtime: what a client says in each, and what events mean. Nothing here does I/O.

Read from the sources of vLLM 0.32 and 0.33, SGLang 0.5.23, sglang-omni and the `openai` package 3.57 (November 2026).
Fields and events that are not known are passed over, as servers add some with each release.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar

import msgspec

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

    @property
    def told(self) -> dict[str, Any]:
        """What run.json says of it, beside the model and the language."""
        names = ("dialect", "packet_s", "pace", "silence_s", "server_vad", "utterances")
        return {name: getattr(self, name) for name in names}


class Event(msgspec.Struct, gc=False):
    """What a server says, as far as it is looked at."""

    type: str
    id: Any = None
    created: Any = None
    session: Any = None
    event_index: int | None = None
    item_id: str | None = None
    segment_id: Any = None
    delta: str | None = None
    text: str | None = None
    transcript: str | None = None
    audio_end_ms: float | None = None
    usage: Any = None
    error: Any = None
    code: Any = None


_decode = msgspec.json.Decoder(Event).decode
_encode = msgspec.json.encode


def read_event(data: bytes) -> Event:
    """An event of a text frame. Raises ProtocolError."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ProtocolError(f"not an event of a realtime session: {error}") from None


class Heard:
    """What a server has said of one utterance. Times are perf_counter nanoseconds."""

    def __init__(self) -> None:
        self.times: list[int] = []
        """When each text came that was new."""
        self.final_at: int | None = None
        self.events: Counter[str] = Counter()
        self.error: str | None = None
        """The server's words, the code before them."""
        self.failed: str | None = None
        self.revised = 0
        """Words that were withdrawn."""
        self.positions: list[tuple[int, float]] = []
        """When a text came, and up to which second of the audio it reaches, where the server tells."""
        self.usage: dict[str, Any] = {}
        self.speaking = False
        """Whether the server hears a turn that has not ended."""
        self.turns = 0
        """That the server has ended by itself."""
        self.done: set[str] = set()
        """Items that have their final text, or failed."""
        self.done_at = 0
        """When the last of them was."""
        self.index = -1
        self._parts: dict[str, str] = {}

    @property
    def text(self) -> str:
        parts = [part.strip() for part in self._parts.values()] if len(self._parts) > 1 else self._parts.values()
        return " ".join(part for part in parts if part)

    def finish(self, item: str, at: int) -> None:
        """The item has come to its end."""
        self.done.add(item)
        self.done_at = at

    def append(self, item: str, delta: str, at: int) -> None:
        """Text that follows what the item has."""
        self._parts[item] = self._parts.get(item, "") + delta
        if delta:
            self.times.append(at)

    def replace(self, item: str, text: str, at: int) -> None:
        """Text in place of what the item has."""
        before = self._parts.get(item, "")
        if text == before:
            self._parts.setdefault(item, "")
            return
        old, new = before.split(), text.split()
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
        self.revised += len(old) - kept
        self._parts[item] = text
        if text:
            self.times.append(at)


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

    def is_final(self, heard: Heard, commits: int) -> bool:
        """Whether nothing more is to come, after so many commits of ours."""
        raise NotImplementedError


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
            heard.append("", event.delta or "", at)
        elif event.type == "transcription.done" and "" not in heard.done:
            heard.replace("", event.text if event.text is not None else heard.text, at)
            heard.finish("", at)
            heard.usage = event.usage if isinstance(event.usage, dict) else {}

    def is_final(self, heard: Heard, commits: int) -> bool:  # noqa: ARG002
        return bool(heard.done)


_PREFIX = "conversation.item.input_audio_transcription."


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
        item = event.item_id or ""
        match event.type.removeprefix(_PREFIX):
            case "delta":
                heard.append(item, event.delta or "", at)
            case "completed" if item not in heard.done:
                heard.replace(item, event.transcript or "", at)
                heard.finish(item, at)
                heard.usage = event.usage if isinstance(event.usage, dict) else {}
            case "failed":
                heard.failed = error_words(event)
                heard.finish(item, at)
            case "input_audio_buffer.speech_started":
                heard.speaking = True
            case "input_audio_buffer.speech_stopped":
                heard.speaking = False
                heard.turns += 1

    def is_final(self, heard: Heard, commits: int) -> bool:
        return not heard.speaking and bool(heard.done) and len(heard.done) >= heard.turns + commits


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
        if event.event_index is not None:
            if event.event_index <= heard.index:
                raise ProtocolError(f"event_index {event.event_index} after {heard.index}")
            heard.index = event.event_index
        if event.type == "transcription.segment":
            if event.audio_end_ms is not None:
                heard.positions.append((at, event.audio_end_ms / 1e3))
            heard.replace(str(event.segment_id), event.text or "", at)
        elif event.type == "transcription.completed" and not heard.done:
            if event.text is not None and event.text.split() != heard.text.split():
                heard.replace("", event.text, at)
            heard.finish("", at)

    def is_final(self, heard: Heard, commits: int) -> bool:  # noqa: ARG002
        return bool(heard.done)


DIALECTS: dict[str, Dialect] = {each.name: each for each in (Vllm(), Sglang(), Omni(), OpenAi())}


def error_words(event: Event) -> str:
    """What an error says, its code first."""
    error = event.error
    if not isinstance(error, dict):
        return ": ".join(str(word) for word in (event.code, error) if word)
    code = error.get("code") or error.get("type") or event.code
    return ": ".join(str(word) for word in (code, error.get("message")) if word) or str(error)


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


def choose(named: str, created: Event, host: str) -> Dialect:
    """The dialect that is spoken. Raises ProtocolError where the server speaks another than the one that was named."""
    told = told_by(created, host)
    if named == "auto":
        if not told:
            raise ProtocolError(f"its first event, {created.type}, is of no known dialect: name it: --realtime-dialect")
        return DIALECTS[told]
    alike = {"sglang", "openai"}
    if told and told != named and not {told, named} <= alike:
        raise ProtocolError(f"the server speaks {told}, not {named}: --realtime-dialect {told}, or auto")
    return DIALECTS[named]

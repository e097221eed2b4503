"""Serve realtime sessions at /v1/realtime, in one of four dialects that share little but the path.

With the scripted engine, word i is due at the first packet + ttft + i * itl. The words that are left when the audio
ends are in the final text, `final` seconds after the message that ended the audio. A real recogniser transcribes all
audio again after each new second. In dialects that only append, it cannot withdraw words that were sent.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

import msgspec
import numpy as np
import pybase64
import soxr
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from asr_server.alarm import Alarm
from asr_server.audio import RATE
from asr_server.engine import Clip, RequestError
from asr_server.exchange import Service
from asr_server.faults import FaultPlan
from asr_server.scripted import ScriptedEngine
from asr_server.transport import ping_often, reset, transport_of

Dialect = Literal["vllm", "sglang", "omni", "openai"]
DIALECTS = ("vllm", "sglang", "omni", "openai")

_AGAIN_S = 1.0  # seconds of new audio after which a recogniser transcribes all audio again
_BUFFER_S = 60.0  # SGLang's limit without a commit
_LOUD, _PAUSE_S = 300.0, 0.5  # turn detection: root mean square of 16-bit samples, seconds of silence
_FEW = 3
_LATE_S, _REPEAT_S = 2.0, 0.15
_ITEM = "conversation.item.input_audio_transcription."
_UNKNOWN: tuple[dict[str, Any], ...] = (
    {"type": "rate_limits.updated", "rate_limits": []},
    {"type": "x.partial", "delta": {"text": "h"}, "text": ["a"], "transcript": 1, "item_id": 7, "segment_id": {}},
    {"type": {"name": "x"}, "error": [], "usage": "many", "session": 3, "audio_end_ms": "late"},
)


_EMPTY = {
    "sglang": ("invalid_state", "Cannot commit an empty audio buffer"),
    "openai": ("input_audio_buffer_commit_empty", "Error committing input audio buffer: buffer too small."),
}
"""Code and message of the error for an empty commit."""


def _item(number: int) -> str:
    return f"item_{number:03d}"


class _Refused(Exception):
    """A client's message is invalid; the session continues."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class _Utterance:
    """One item, segment or generation."""

    item: str
    audio: bytearray = field(default_factory=bytearray)
    began_at: float = 0.0
    ended_at: float | None = None
    said: str = ""
    task: asyncio.Task[None] | None = None


class RealtimeEndpoint:
    """The endpoint of sessions: an ASGI application."""

    def __init__(self, service: Service, faults: FaultPlan, model: str, dialect: Dialect) -> None:
        self.service, self.faults, self.model, self.dialect = service, faults, model, dialect
        self.open = 0

    @cached_property
    def alarm(self) -> Alarm:
        """The alarm of all sessions, because each alarm takes a descriptor."""
        return Alarm()  # made for the first session, because it belongs to the running loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        try:
            fault = self.faults.choose(websocket.headers)
        except RequestError as error:
            await websocket.send_denial_response(Response(str(error), error.status))
            return
        if fault in ("ws-403", "ws-404"):
            await websocket.send_denial_response(Response(status_code=int(fault[3:])))
            return
        self.open += 1
        self.service.slots.running += 1
        try:
            await _Session(self, websocket, fault).run()
        finally:
            self.open -= 1
            self.service.slots.running -= 1


async def _unless_gone(work: Coroutine[Any, Any, None]) -> None:
    """Do a session's work until either side has closed the connection."""
    with suppress(WebSocketDisconnect, RuntimeError):
        await work


class _Session:
    def __init__(self, endpoint: RealtimeEndpoint, websocket: WebSocket, fault: str | None) -> None:
        self._endpoint, self._websocket, self._fault = endpoint, websocket, fault
        self._service, self._dialect = endpoint.service, endpoint.dialect
        self._id = f"sess-{uuid.uuid4().hex[:16]}"
        self._rate = RATE
        self._configured = False
        self._vad = False
        self._heard_speech, self._quiet_s = False, 0.0
        self._index = self._items = self._texts = 0
        self._broken = False
        """Whether a fault in the middle of the text has happened."""
        self._last: str | None = None
        """The last committed item."""
        self._second_is_done = asyncio.Event()
        self._current: _Utterance | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._received: list[float] = []
        self._sent: list[float] = []
        self._final: list[float] = []
        self._over = False

    async def run(self) -> None:
        await self._websocket.accept()
        if self._fault == "ws-impatient":
            ping_often(self._websocket.scope, 0.05, 0.2)
        try:
            await _unless_gone(self._run())
        finally:
            for task in list(self._tasks):
                task.cancel()
            self._write_stamps()

    async def _run(self) -> None:
        engine = self._service.engine
        limit = engine.slots if isinstance(engine, ScriptedEngine) else 0  # the slots of a recogniser are its threads
        if limit and self._endpoint.open > limit:
            await self._error("too_many_sessions", "Too many concurrent sessions.", "rate_limit_exceeded")
            await self._websocket.close(1000)
            return
        await self._send(self._created())
        while not self._over:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            at = time.perf_counter()
            text = message.get("text")
            if text is None:
                if self._dialect == "vllm":
                    self._cut()
                    return
                await self._error("invalid_payload", "Binary frames are not supported.")
                continue
            try:
                await self._take(text, at)
            except _Refused as refused:
                await self._error(refused.code, str(refused))
            if self._fault == "ws-slow-reader":
                await asyncio.sleep(0.5)

    # Messages of the client

    async def _take(self, text: str, at: float) -> None:
        try:
            event = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.MsgspecError:
            code = "invalid_payload" if self._dialect in ("sglang", "openai") else "invalid_json"
            raise _Refused(code, "Invalid JSON.") from None
        kind = event.get("type")
        match kind:
            case "session.update":
                self._configure(event)
                self._configured = True
                if self._dialect != "vllm" and self._fault != "ws-no-updated":
                    await self._send(self._session_event("session.updated"))
            case "input_audio_buffer.append":
                await self._append(event, at)
            case "input_audio_buffer.commit" if self._dialect != "omni":
                await self._commit(final=bool(event.get("final")), at=at)
            case "transcription.done" if self._dialect == "omni":
                await self._end(self._current or self._begin(at), at)
            case _:
                code = "unsupported_event" if self._dialect == "omni" else "unknown_event"
                raise _Refused(code, f"Unknown event {kind!r}.")

    def _configure(self, event: dict[str, Any]) -> None:
        session = event.get("session")
        model = self._endpoint.model
        if self._dialect == "vllm":
            if "model" not in event:
                raise _Refused("invalid_event", "Missing required field: model")
            if event["model"] not in (model, "default"):
                raise _Refused("model_not_found", f"The model {event['model']!r} does not exist.")
            return
        if not isinstance(session, dict):
            raise _Refused("invalid_event" if self._dialect == "omni" else "invalid_value", "session: Field required")
        if self._dialect == "omni":
            if others := set(session) - {"language", "turn_detection", "input_audio_format"}:
                raise _Refused("invalid_event", f"Unknown fields: {', '.join(sorted(others))}")
            self._vad = session.get("turn_detection") is not None
            return
        audio = session.get("audio", {}).get("input", {})
        rate = audio.get("format", {}).get("rate", 24000)
        named = (audio.get("transcription") or {}).get("model")
        self._vad = audio.get("turn_detection") is not None
        rates = (24000,) if self._dialect == "openai" else (16000, 24000, 48000)
        if rate not in rates:
            raise _Refused("invalid_value", f"The rate must be one of {rates}, not {rate}.")
        if self._dialect == "openai" and not named:
            raise _Refused("missing_required_parameter", "session.audio.input.transcription.model is required.")
        if self._dialect == "sglang" and (self._vad or named not in (None, model)):
            raise _Refused("not_supported", "turn_detection must be null, and model null or the served name.")
        self._rate = rate

    async def _append(self, event: dict[str, Any], at: float) -> None:
        if not self._configured and self._dialect != "vllm":
            raise _Refused("invalid_state", "session.update must come first.")
        try:
            pcm = pybase64.b64decode(event["audio"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise _Refused("invalid_audio", "audio is not base64.") from None
        if len(pcm) % 2 or (not pcm and self._dialect == "vllm"):
            raise _Refused("invalid_audio", "audio is not 16-bit PCM.")
        if not pcm:
            return
        self._received.append(at)
        current = self._current
        if current is None or (self._dialect == "vllm" and current.ended_at is not None):
            if self._dialect == "vllm":
                return  # vLLM queues audio before the first commit, but asr-load never sends any
            current = self._begin(at)
        if not current.audio and not self._vad:
            self._start(current, at)
        current.audio += pcm
        if self._dialect == "sglang" and len(current.audio) / 2 / self._rate > _BUFFER_S:
            await self._error("buffer_overflow", f"More than {_BUFFER_S:.0f} s without a commit.")
            await self._close(1009, "buffer_overflow")
        elif self._vad:
            await self._listen_for_turns(pcm, current, at)

    async def _listen_for_turns(self, pcm: bytes, current: _Utterance, at: float) -> None:
        samples = np.frombuffer(pcm, "<i2").astype(np.float32)
        loud = float(np.sqrt(np.square(samples).mean())) > _LOUD
        name = "segment_id" if self._dialect == "omni" else "item_id"
        if loud and not self._heard_speech:
            self._heard_speech = True
            self._start(current, at)
            await self._send({"type": "input_audio_buffer.speech_started", "audio_start_ms": 0, name: current.item})
        self._quiet_s = 0.0 if loud else self._quiet_s + samples.size / self._rate
        if self._heard_speech and self._quiet_s >= _PAUSE_S:
            self._heard_speech = False
            length = round(len(current.audio) / 2 / self._rate * 1000)
            await self._send({"type": "input_audio_buffer.speech_stopped", "audio_end_ms": length, name: current.item})
            if self._dialect == "openai":
                await self._take_turn(current, at)

    async def _commit(self, *, final: bool, at: float) -> None:
        if self._dialect == "vllm":
            if not self._configured:
                raise _Refused("model_not_validated", "session.update must come first.")
            if not final:
                if self._current is None or self._current.ended_at is not None:
                    self._begin(at)
            elif self._current is not None and self._current.ended_at is None:
                await self._end(self._current, at)
            return
        current = self._current
        if current is None or not current.audio:
            raise _Refused(*_EMPTY[self._dialect])
        self._heard_speech = False
        if self._fault == "ws-own-commit":
            await self._send({"type": "input_audio_buffer.speech_stopped", "item_id": current.item})
        await self._take_turn(current, at)
        if self._fault == "ws-own-commit":
            raise _Refused(*_EMPTY["openai"])

    async def _take_turn(self, current: _Utterance, at: float) -> None:
        """Commit an item after the previous one, and transcribe it."""
        named = {"item_id": current.item, "previous_item_id": self._last}
        await self._send({"type": "input_audio_buffer.committed", **named})
        item = {"id": current.item, "type": "message"}
        await self._send({"type": "conversation.item.created", "previous_item_id": self._last, "item": item})
        self._last, self._current = current.item, None
        await self._end(current, at)

    # Transcription

    def _begin(self, at: float) -> _Utterance:
        self._items += 1
        self._current = _Utterance(_item(self._items), began_at=at)
        return self._current

    def _start(self, utterance: _Utterance, at: float) -> None:
        utterance.began_at = at
        if self._fault == "ws-reordered":
            return  # send no texts, which would reveal the order of the items before they are completed
        utterance.task = self._spawn(self._talk(utterance))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(_unless_gone(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _end(self, utterance: _Utterance, at: float) -> None:
        utterance.ended_at = at
        if utterance.task is not None:
            utterance.task.cancel()
        self._spawn(self._finish(utterance))

    async def _talk(self, utterance: _Utterance) -> None:
        async for text in self._partials(utterance):
            await self._say(utterance, text)
            if self._texts == _FEW and await self._break():
                return

    async def _partials(self, utterance: _Utterance) -> AsyncIterator[str]:
        """Yield the whole text so far, each time that it grows."""
        engine = self._service.engine
        if isinstance(engine, ScriptedEngine):
            for number in range(engine.tokens):
                await self._endpoint.alarm.wait_until(utterance.began_at + engine.ttft + number * engine.itl)
                yield " ".join(engine.word(each) for each in range(number + 1))
            return
        heard, words = 0, list[str]()
        while True:
            await asyncio.sleep(0.05)
            if (len(utterance.audio) - heard) / 2 / self._rate >= _AGAIN_S:
                heard = len(utterance.audio)
                last, words = words, (await self._recognise(bytes(utterance.audio))).split()
                shown = words
                if self._dialect != "omni":  # words cannot be withdrawn: send only those recognized twice
                    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, words, strict=False)))
                    before = utterance.said.split()
                    shown = before + words[len(before) : alike]
                if " ".join(shown) != utterance.said:
                    yield " ".join(shown)

    async def _recognise(self, pcm: bytes) -> str:
        samples = np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768)
        if self._rate != RATE:
            samples = np.asarray(soxr.resample(samples, self._rate, RATE), dtype=np.float32)
        clip = Clip(seconds=samples.size / RATE, prompt_tokens=0, samples=samples)
        async with aclosing(self._service.engine.generate(clip, None, time.perf_counter())) as pieces:
            return "".join([piece.text async for piece in pieces]).strip()

    async def _finish(self, utterance: _Utterance) -> None:
        # On a busy machine, the audio may end before the middle of the text.
        if not self._broken and await self._break():
            return
        if self._fault in ("ws-stall", "ws-error", "ws-failed"):
            return
        text = await self._final_text(utterance)
        if text != utterance.said:
            await self._say(utterance, text, final=True)
        if self._fault == "ws-no-final":
            await self._close(1000)
            return
        if self._fault == "ws-spaced-final":
            utterance.said = f" {text}\n".replace(" ", "  ")
        await self._complete(utterance)
        if self._fault in ("ws-double-final", "ws-late-repeat"):
            await asyncio.sleep(_REPEAT_S if self._fault == "ws-late-repeat" else 0)
            await self._complete(utterance)
        if utterance.item == _item(2):
            self._second_is_done.set()

    async def _final_text(self, utterance: _Utterance) -> str:
        """Wait until the final text of an ended utterance is due, and return it."""
        assert utterance.ended_at is not None
        engine = self._service.engine
        if isinstance(engine, ScriptedEngine):
            late = _LATE_S if self._fault == "ws-late-final" else 0.0
            await self._endpoint.alarm.wait_until(utterance.ended_at + engine.final + late)
            text = " ".join(engine.word(each) for each in range(engine.tokens)) if utterance.audio else ""
        else:
            text = await self._recognise(bytes(utterance.audio)) if utterance.audio else ""
            if self._dialect != "omni":
                before = utterance.said.split()
                text = " ".join(before + text.split()[len(before) :])
        if self._fault == "ws-empty":
            text = ""
        if self._fault == "ws-reordered":
            text = f"{text} {utterance.item}"
            if utterance.item == _item(1):
                await self._second_is_done.wait()
        return text

    async def _complete(self, utterance: _Utterance) -> None:
        self._final.append(time.perf_counter())
        await self._send(self._completed(utterance))

    async def _say(self, utterance: _Utterance, text: str, *, final: bool = False) -> None:
        """Send the new part of a text."""
        before, utterance.said = utterance.said, text
        if self._fault == "ws-empty":
            return
        if self._fault == "ws-empty-deltas" and self._dialect != "omni":
            await self._send(self._partial(utterance, "", final=False))
        if self._fault == "ws-unknown-events":
            for event in _UNKNOWN:
                await self._send(dict(event))
        if self._fault == "ws-replaced" and self._dialect == "omni" and not final:
            utterance.said = f"{text} er"
        self._sent.append(time.perf_counter())
        self._texts += 1
        delta = text.removeprefix(before)
        await self._send(self._partial(utterance, delta, final=final))

    async def _break(self) -> bool:
        """Simulate a fault in the middle of the text. Returns whether it ends the session."""
        self._broken = True
        match self._fault:
            case "ws-close-1009" | "ws-close-1011":
                await self._close(int(self._fault[-4:]), "as requested")
            case "ws-cut":
                self._cut()
            case "ws-error":
                await self._error("processing_error", "The engine failed, as requested.")
                await asyncio.Event().wait()
            case "ws-failed" if self._dialect in ("sglang", "openai") and self._current is not None:
                error = {"type": "server_error", "code": "inference_failed", "message": "as requested"}
                await self._send({"type": f"{_ITEM}failed", "item_id": self._current.item, "error": error})
                await asyncio.Event().wait()
            case "ws-bad-json":
                await self._websocket.send_text('{"type":')
            case "ws-binary":
                await self._websocket.send_bytes(b"\0\1")
            case "ws-giant":
                await self._send({"type": "transcription.delta", "delta": "a" * (2 << 20)})
            case "ws-stall":
                await asyncio.Event().wait()
            case _:
                return False
        return True

    # Messages of the server

    def _created(self) -> dict[str, Any]:
        if self._dialect == "vllm":
            return {"type": "session.created", "id": self._id, "created": int(time.time())}
        return self._session_event("session.created")

    def _session_event(self, kind: str) -> dict[str, Any]:
        if self._dialect == "omni":
            session: dict[str, Any] = {"id": self._id, "intent": "transcription", "model": self._endpoint.model}
            return {"type": kind, "session": session | {"decode_interval_ms": 1000}}
        audio = {"input": {"format": {"type": "audio/pcm", "rate": 24000 if kind.endswith("created") else self._rate}}}
        session = {"id": self._id, "type": "transcription", "object": "realtime.transcription_session", "audio": audio}
        return {"type": kind, "session": session}

    def _partial(self, utterance: _Utterance, delta: str, *, final: bool) -> dict[str, Any]:
        if self._dialect == "vllm":
            return {"type": "transcription.delta", "delta": delta}
        if self._dialect == "omni":
            return {
                "type": "transcription.segment",
                "segment_id": utterance.item,
                "audio_start_ms": 0,
                "audio_end_ms": round(len(utterance.audio) / 2 / self._rate * 1000),
                "text": utterance.said,
                "is_final": final,
            }
        return {"type": f"{_ITEM}delta", "item_id": utterance.item, "content_index": 0, "delta": delta}

    def _completed(self, utterance: _Utterance) -> dict[str, Any]:
        text, length = utterance.said, len(utterance.audio) / 2 / self._rate
        if self._dialect == "vllm":
            tokens = len(text.split())
            usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
            return {"type": "transcription.done", "text": text, "usage": usage}
        if self._dialect == "omni":
            return {"type": "transcription.completed", "text": text}
        completed = {"item_id": utterance.item, "content_index": 0, "transcript": text}
        return {"type": f"{_ITEM}completed", **completed, "usage": {"type": "duration", "seconds": length}}

    async def _error(self, code: str, message: str, kind: str = "invalid_request_error") -> None:
        if self._dialect == "vllm":
            await self._send({"type": "error", "error": message, "code": code})
        else:
            await self._send({"type": "error", "error": {"type": kind, "code": code, "message": message}})

    async def _send(self, event: dict[str, Any]) -> None:
        if self._dialect == "omni":
            event["event_index"] = self._index
            self._index += 1
        elif self._dialect != "vllm":
            event["event_id"] = f"event_{uuid.uuid4().hex}"
        await self._websocket.send_text(msgspec.json.encode(event).decode())

    async def _close(self, code: int, reason: str = "") -> None:
        self._over = True
        await self._websocket.close(code, reason)

    def _cut(self) -> None:
        self._over = True
        reset(transport_of(self._websocket.scope))

    def _write_stamps(self) -> None:
        if self._service.stamps is None:
            return
        name = self._websocket.headers.get("x-request-id", self._id)
        line = {"request_id": name, "received_at": self._received, "sent_at": self._sent, "final_at": self._final}
        self._service.stamps.write(line | {"fault": self._fault})

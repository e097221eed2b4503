"""Serve one request, from its parsed body to the last byte of its response.

Responses go to uvicorn as bytes, without a streaming response: with thousands of streams, every layer counts.
"""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import msgspec
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from asr_server.chunk_sender import ChunkSender
from asr_server.engine import Audio, Clip, Engine, RequestError, Script
from asr_server.faults import FEW, HTTP_FAULTS
from asr_server.metrics import Metrics
from asr_server.sglang import (
    DONE,
    ChatEvents,
    Events,
    SpeechRequest,
    TranscriptionEvents,
    Usage,
    chat_completion,
    error_body,
    error_event,
    transcription,
)
from asr_server.slots import QueueFullError, Slots
from asr_server.transport import Server, begin_unwritten, descriptor_of, encryption_of, reset, transport_of

REDIRECTED = "/redirected"
"""Prefix of the paths to which the fault `redirect` points; they have no faults."""
_NO_AUDIO = Audio(b"", "", base64=False)
_REFUSE_S = 1.0
_GIANT = 4 * 1024 * 1024
_MULTI = 4
_THOUGHTS = ("Listening", " to", " the audio.")
_MIDSTREAM = {
    "error-midstream",
    "early-end",
    "reset",
    "stall",
    "half-event",
    "bad-utf8",
    "bad-json",
    "giant-event",
    "abort",
}
_CHUNK_FAULTS = _MIDSTREAM | {"empty", "multi", "reasoning"}
_EVENT_STREAM = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}


class Stamps:
    """A file with one JSON line per request: when each of its chunks was sent."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")


@dataclass(slots=True)
class Service:
    """The objects that all requests share."""

    engine: Engine
    slots: Slots
    metrics: Metrics
    stamps: Stamps | None
    stamp_events: bool
    """Whether each chunk contains its time of sending, as a comment line of its event."""
    slow_s: float
    chunk_sender: ChunkSender | None = None
    """Sends streams whose text is known in advance; None: the event loop sends them."""
    server: Server | None = None


def flat_error(message: str, status: int) -> JSONResponse:
    """An HTTP error in SGLang's format."""
    headers = {413: {"Connection": "close"}, 429: {"Retry-After": "1"}}  # the rest of a long body is not read
    return JSONResponse(error_body(message, status), status, headers.get(status))


@dataclass(slots=True)
class Exchange:
    """A request and its response. Times are `time.perf_counter()` seconds."""

    service: Service
    request: SpeechRequest
    chat: bool
    id: str
    """32 hex digits."""
    fault: str | None
    received_at: float
    """When the last byte of the body was read."""
    scope: Scope
    receive: Receive
    send: Send
    started_at: float | None = None
    """The start of service; None before that."""
    sent_at: list[float] = field(default_factory=list)
    """The stamp of each chunk with text."""
    tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0

    async def run(self) -> None:
        """Respond, or stop as soon as the client disconnects."""
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(self._cancel_when_gone(task))
        try:
            await self._answer()
        except asyncio.CancelledError:
            if not watcher.done():  # the server stops
                raise
            task.uncancel()
        finally:
            watcher.cancel()
            self._book()

    async def _cancel_when_gone(self, task: asyncio.Task[None]) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    def _book(self) -> None:
        if self.started_at is not None:
            self.service.metrics.observe(
                received=self.received_at,
                started=self.started_at,
                ended=time.perf_counter(),
                sent_at=self.sent_at,
                prompt_tokens=self.audio_tokens,
                tokens=self.tokens,
            )
        if self.service.stamps is not None:
            name = next((v.decode("latin-1") for k, v in self.scope["headers"] if k == b"x-request-id"), self.id)
            line = {"request_id": name, "received_at": self.received_at, "started_at": self.started_at}
            self.service.stamps.write(line | {"sent_at": self.sent_at, "tokens": self.tokens, "fault": self.fault})

    async def _answer(self) -> None:
        if self.fault in HTTP_FAULTS:
            await self._respond(flat_error("This error was requested.", HTTP_FAULTS[self.fault]))
        elif self.fault == "redirect":
            await self._respond(Response(status_code=307, headers={"Location": REDIRECTED + self.scope["path"]}))
        elif self.fault == "refuse":
            if self.service.server is not None:
                self.service.server.refuse(_REFUSE_S)
            reset(transport_of(self.scope))
            await anyio.sleep_forever()
        elif self.fault == "hang":
            await anyio.sleep_forever()
        else:
            if self.fault == "slow-headers":
                await anyio.sleep(self.service.slow_s)
            await self._serve()

    async def _respond(self, response: Response) -> None:
        await response(self.scope, self.receive, self.send)

    async def _serve(self) -> None:
        stream = self.request.stream and self.fault != "json"
        try:
            clip = await self.service.engine.prepare(self.request.audio)
            self.request = self.request._replace(audio=_NO_AUDIO)  # the audio of a thousand streams takes gigabytes
            if stream and self.fault == "error":
                await self._fail_stream("The scheduler failed, as requested.")
                return
            async with self.service.slots.take() as waited:
                late = waited or self.fault == "slow-headers"
                self.started_at = time.perf_counter() if late else self.received_at
                if not stream:
                    await self._plain(clip)
                elif script := self._script():
                    await self._pace(clip, script)
                else:
                    await self._stream(clip)
        except QueueFullError as error:
            if stream:
                await self._fail_stream(str(error))
            else:
                await self._respond(flat_error(str(error), 503))
        except RequestError as error:
            await self._respond(flat_error(str(error), error.status))

    def _usage(self) -> Usage:
        return Usage(self.audio_tokens, self.tokens, self.audio_tokens, self.reasoning_tokens)

    async def _plain(self, clip: Clip) -> None:
        parts = []
        finish = "stop"
        async with aclosing(self.service.engine.generate(clip, self.request.max_tokens, self._start())) as pieces:
            async for piece in pieces:
                parts.append(piece.text)
                self.tokens += piece.tokens
                finish = piece.finish or finish
        self.audio_tokens = clip.prompt_tokens
        text = "".join(parts)
        if self.chat:
            body = chat_completion(self.id, self.request.model, text, finish, self._usage())
        else:
            body = transcription(text, clip.seconds)
        self.sent_at.append(time.perf_counter())
        await self._respond(JSONResponse(body))

    def _events(self) -> Events:
        return (ChatEvents if self.chat else TranscriptionEvents)(self.id, self.request.model)

    def _start(self) -> float:
        assert self.started_at is not None
        return self.started_at

    def _script(self) -> Script | None:
        """The script for the chunk sender; None if it cannot send this stream, because of faults or missing stamps."""
        service = self.service
        if service.chunk_sender is None or not service.stamp_events or self.fault in _CHUNK_FAULTS:
            return None
        return service.engine.script(self.request.max_tokens)

    async def _pace(self, clip: Clip, script: Script) -> None:
        """Let the chunk sender send the head and all chunks with text; the stream then ends as usual."""
        assert self.service.chunk_sender is not None
        events = self._events()
        frame, texts = events.content_frame(), script.json_texts
        if self.request.continuous_usage:
            frame, texts = (b"", b""), self._contents_with_usage(events, clip, script)
        head = await begin_unwritten(self.scope, self.send, _EVENT_STREAM)
        transport = transport_of(self.scope)
        try:
            await self.service.chunk_sender.send(
                descriptor_of(transport),
                head=head,
                opening=events.opening(),
                frame=frame,
                texts=texts,
                script=script,
                start=self._start(),
                sent_at=self.sent_at,
                encrypt=encryption_of(transport),
            )
        except OSError:  # the connection is broken, but uvicorn may not know it; abort lets it end this request
            transport.abort()
            await anyio.sleep_forever()
        finally:
            self.tokens = script.tokens_in(len(self.sent_at))
            self.audio_tokens = clip.prompt_tokens if self.sent_at else 0
        stream = _EventStream(self, events)
        stream.opened = True
        await self._finish(stream, script.finish)

    def _contents_with_usage(self, events: Events, clip: Clip, script: Script) -> tuple[bytes, ...]:
        audio = clip.prompt_tokens
        return tuple(
            events.content(text, Usage(audio, script.tokens_in(chunks), audio))
            for chunks, text in enumerate(script.texts, 1)
        )

    async def _stream(self, clip: Clip) -> None:
        events = self._events()
        stream = _EventStream(self, events)
        fault = self.fault
        wanted = _MULTI if fault == "multi" else 1
        thoughts = list(_THOUGHTS) if fault == "reasoning" else []
        text, held = "", 0
        reason: str | None = None
        async with aclosing(self.service.engine.generate(clip, self.request.max_tokens, self._start())) as pieces:
            async for piece_text, tokens, reason in pieces:
                if fault == "empty":
                    break
                self.tokens += tokens
                self.audio_tokens = clip.prompt_tokens
                text += piece_text
                held += tokens
                if thoughts and piece_text:  # hold the text back meanwhile, to keep the schedule
                    self.tokens += 1
                    self.reasoning_tokens += 1
                    await stream.send_chunk(events.reasoning(thoughts.pop(0)))
                    continue
                if text and (held >= wanted or reason):
                    usage = self._usage() if self.request.continuous_usage else None
                    await stream.send_chunk(events.content(text, usage))
                    text, held = "", 0
                if fault in _MIDSTREAM and (len(self.sent_at) >= FEW or reason):
                    if await self._break(stream, fault):
                        return
                    fault = None
        self.audio_tokens = clip.prompt_tokens
        await self._finish(stream, reason or "stop")

    async def _finish(self, stream: "_EventStream", reason: str) -> None:
        if self.fault == "no-end":
            await stream.end(b"")
            return
        tail = stream.events.finish(reason)
        if self.request.include_usage and self.fault != "no-usage":
            tail += stream.events.usage(self._usage())
        await stream.end(tail if self.fault == "no-done" else tail + DONE)

    async def _break(self, stream: "_EventStream", fault: str) -> bool:
        """Simulate a fault in the middle of the stream. Returns whether it ended the stream."""
        events = stream.events
        match fault:
            case "bad-utf8":
                await stream.send_bytes(events.content(" é").replace("é".encode(), b"\xff\xfe"))
                return False
            case "bad-json":
                await stream.send_bytes(b'data: {"id":"' + events.id.encode() + b'","choices":[{]}\n\n')
                return False
            case "giant-event":
                self.tokens += 1
                await stream.send_chunk(events.content(" " + "a" * (_GIANT - 1)))
                return False
            case "error-midstream":
                await stream.end(self._error("The scheduler failed, as requested.", events))
            case "half-event":
                event = events.content(" half")
                await stream.end(event[: len(event) // 2])
            case "abort":
                await self._finish(stream, "abort")
            case "early-end":
                transport_of(self.scope).close()  # sends everything written so far, but not the last chunk of the body
                await anyio.sleep_forever()
            case "reset":
                await anyio.sleep(0.05)  # let the chunks arrive, because a reset may overtake them
                reset(transport_of(self.scope))
                await anyio.sleep_forever()
            case _:  # stall
                await anyio.sleep_forever()
        return True

    async def _fail_stream(self, message: str) -> None:
        events = self._events()
        stream = _EventStream(self, events)
        stream.opened = True  # an error has no role chunk before it
        await stream.start()
        await stream.end(self._error(message, events))

    def _error(self, message: str, events: Events) -> bytes:
        usage = events.usage(Usage()) if self.request.include_usage else b""
        return error_event(message, 503) + usage + DONE


class _EventStream:
    """The body of a streamed response. Like SGLang, it sends the headers and the opening event with the first text."""

    def __init__(self, exchange: Exchange, events: Events) -> None:
        self.events = events
        self.opened = False
        self._started = False
        self._send = exchange.send
        self._sent_at = exchange.sent_at
        self._stamped = exchange.service.stamp_events

    async def start(self) -> None:
        self._started = True
        await self._send(_EVENT_STREAM)

    async def send_chunk(self, event: bytes) -> None:
        """Send an event with text, and note the time."""
        opening = b"" if self.opened else await self._open()
        now = time.perf_counter()
        if self._stamped:
            event = b"%b: sent_at=%.9f\n%b" % (opening, now, event)
        elif opening:
            event = opening + event
        self._sent_at.append(now)
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def send_bytes(self, data: bytes) -> None:
        opening = b"" if self.opened else await self._open()
        await self._send({"type": "http.response.body", "body": opening + data, "more_body": True})

    async def end(self, data: bytes) -> None:
        opening = b"" if self.opened else await self._open()
        await self._send({"type": "http.response.body", "body": opening + data, "more_body": False})

    async def _open(self) -> bytes:
        if not self._started:
            await self.start()
        self.opened = True
        return self.events.opening()

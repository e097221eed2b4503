"""From socket reads to timed events, whatever the engine's dialect, and to a stream's outcome. Nothing here does I/O.

Dialects that are read: chat.completion.chunk and transcription.chunk of SGLang and vLLM, OpenAI's transcript.text.*,
whole chat.completion and transcription bodies where a server answers without streaming, errors flat or nested.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from sseclient import SSEClient

from asr_load.stream import events

MAX_EVENT_BYTES = 1 << 20
"""The longest event that is read: no chunk of a transcript comes near it, and memory stays bounded."""

MAX_ERROR_CHARS = 2000
"""Of a server's words. Records keep a quarter of it, after secrets are struck out: so none is cut in half and kept."""

BOM = b"\xef\xbb\xbf"

_event_ends = re.compile(rb"\n\n|\r\n\r\n|\r\r").finditer
_DONE = b"[DONE]"


class ProtocolError(Exception):
    """The server sent something that is no event stream of any known dialect."""


# gc=False: none of them refers to another that refers back to it, and there are thousands a second.
class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None
    message: Any = None
    type: str | None = None
    delta: str | None = None
    text: str | None = None


_decoder = msgspec.json.Decoder(_Event)


def _is_error(event: _Event) -> bool:
    return bool(event.error) or event.object == "error" or event.type == "error"


class Answer:
    """What one answer said: content chunks with the time of their reads, usage, and how it ended.

    Times are whatever `clock` gives; the harness uses `time.perf_counter_ns`, in nanoseconds.
    """

    def __init__(self) -> None:
        self.times: list[int] = []
        """When each non-empty content or reasoning chunk came."""
        self.parts: list[str] = []
        """The text of each content chunk; reasoning is counted and timed, but is not part of the transcript."""
        self.finish_reason: str | None = None
        self.done = False
        """The terminator came: `[DONE]`, OpenAI's transcript.text.done, or the end of a whole body."""
        self.error: str | None = None
        """The server's own words for an error that it sent as an event."""
        self.streamed = True
        self._parsed = 0
        self._events = 0
        self.output_tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def said_its_end(self) -> bool:
        """Whether the answer is complete, however its connection went on."""
        return self.done or self.finish_reason is not None

    def outcome(self) -> str:
        """The outcome of an answer whose body ended, or that had said its end before its connection broke."""
        if self.error is not None:
            return "stream_error"
        if self.finish_reason == "abort":
            return "aborted"
        if not self.said_its_end:
            return "cut"
        return "ok" if self.text.strip() else "empty"

    def read_events(self, reads: Iterable[bytes], clock: Callable[[], int]) -> None:
        """Read a body of server-sent events to its end. Raises ProtocolError, and what `reads` raises.

        Each event gets the time at which the read that completed it returned.
        """
        stamped = _StampedReads(reads, clock)
        try:
            for event in SSEClient(iter(stamped)).events():
                stamped.events += 1
                if event.data:  # one without only keeps the connection alive
                    self._take(event.data, stamped.at)
        except UnicodeDecodeError as error:
            raise ProtocolError(f"the stream is not UTF-8: {error.reason}") from error
        if not stamped.events and stamped.beginning.strip() and not stamped.beginning.startswith(b":"):
            raise ProtocolError(f"not a stream of events: {shorten(stamped.beginning)}")

    def read_collected(self, body: bytes, stamps: Sequence[int], ends: Sequence[int], ended: bool) -> None:
        """Read a body of server-sent events that was collected before, as far as it has come; call it again with more.

        `stamps` and `ends` are of its reads, shape (n,): when each came, and where in `body` it ended. Gives what
        `read_events` gives for the same reads; its speed is why there are two. Raises ProtocolError.
        """
        at = self._parsed or (len(BOM) if body.startswith(BOM) else 0)
        at = self._parsed = self._take_plain_events(body, at, stamps, ends)
        read = 0
        for match in _event_ends(body, at):
            start, end = match.span()
            while ends[read] < end:
                read += 1
            self._parsed = end
            self._take_event(body[at:start], stamps[read])
            at = end
        if len(body) - at > MAX_EVENT_BYTES:
            raise ProtocolError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        if ended and at < len(body):
            self._take_event(body[at:], stamps[-1])
        if ended and not self._events and body.strip() and not body.startswith(b":"):
            raise ProtocolError(f"not a stream of events: {shorten(body)}")

    def _take_plain_events(self, body: bytes, start: int, stamps: Sequence[int], ends: Sequence[int]) -> int:
        """Take all whole events at once, in a third of the time, if each is as engines send it. Returns where they end;
        `start`, with none of them taken, if any is of another kind, or an error."""
        found = events.find(body, start, stamps, ends)
        if found is None:
            return start
        objects, times, done, end = found
        if end - start > MAX_EVENT_BYTES:
            return start
        try:
            body.isascii() or body[start:end].decode()
            decoded = _decoder.decode_lines(objects)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return start
        if len(decoded) != len(times) or any(map(_is_error, decoded)):
            return start
        for event, at in zip(decoded, times, strict=True):
            self._apply(event, b"", at)
        self._events += len(decoded) + done
        self.done = self.done or done
        return end

    def _take_event(self, block: bytes, at: int) -> None:
        if len(block) > MAX_EVENT_BYTES:
            raise ProtocolError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        if not block.isascii():
            try:
                block.decode()
            except UnicodeDecodeError as error:
                raise ProtocolError(f"the stream is not UTF-8: {error.reason}") from error
        if block.startswith(b":") and b"\r" not in block:  # a comment, which keeps a connection alive
            block = block.partition(b"\n")[2]
        if block.startswith(b"data: ") and b"\n" not in block and b"\r" not in block:
            values = [block[6:]]
        else:
            lines = (line.partition(b":") for line in block.splitlines())
            values = [value.removeprefix(b" ") for field, _, value in lines if field == b"data"]
        if values:
            self._events += 1
            if data := b"\n".join(values):
                self._take(data, at)

    def read_whole(self, body: bytes, at: int) -> None:
        """Take a body that is not streamed, complete at the time `at`. Raises ProtocolError."""
        self.streamed = False
        self._take(body, at)
        self.done = True

    def _take(self, data: str | bytes, at: int) -> None:
        if data in (_DONE, _DONE.decode()):
            self.done = True
            return
        try:
            event = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(f"not an event of a transcript ({error}): {shorten(data)}") from error
        self._apply(event, data, at)

    def _apply(self, event: _Event, data: str | bytes, at: int) -> None:
        if _is_error(event):
            self.error = error_message(event.error or event.message) or shorten(data)
            return
        if event.usage is not None:
            self._count(event.usage)
        if event.choices:
            choice = event.choices[0]
            message = choice.delta or choice.message
            if message is not None:
                self._add(message.content, message.reasoning_content or message.reasoning, at)
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
        elif event.type == "transcript.text.delta":
            self._add(event.delta, None, at)
        elif event.type == "transcript.text.done":
            # Its text repeats the deltas; it is new only where there were none.
            if not self.times:
                self._add(event.text, None, at)
            self.done = True
        elif event.text is not None and event.choices is None:
            self._add(event.text, None, at)

    def _add(self, content: str | None, reasoning: str | None, at: int) -> None:
        if content or reasoning:
            self.times.append(at)
        if content:
            self.parts.append(content)

    def _count(self, usage: _Usage) -> None:
        self.output_tokens = usage.completion_tokens if usage.output_tokens is None else usage.output_tokens
        self.prompt_tokens = usage.prompt_tokens if usage.input_tokens is None else usage.input_tokens
        if usage.prompt_tokens_details is not None:
            self.cached_tokens = usage.prompt_tokens_details.cached_tokens


class _StampedReads:
    """Hands reads on and remembers when the last one returned. Bounds what can pile up without a line's end."""

    def __init__(self, reads: Iterable[bytes], clock: Callable[[], int]) -> None:
        self.at = 0
        self.events = 0
        self.beginning = b""
        self._reads, self._clock = reads, clock

    def __iter__(self) -> Iterator[bytes]:
        pending = 0
        for read in self._reads:
            self.at = self._clock()
            data = read if self.beginning else read.removeprefix(BOM)
            self.beginning = self.beginning or data
            end = data.rfind(b"\n")
            pending = pending + len(data) if end < 0 else len(data) - end - 1
            if pending > MAX_EVENT_BYTES:
                raise ProtocolError(f"an event of more than {MAX_EVENT_BYTES} bytes")
            yield data


def error_message(error: Any) -> str:
    """The server's words in an error, nested or flat, as one line of at most MAX_ERROR_CHARS characters."""
    while isinstance(error, dict):
        error = error.get("message") or error.get("error") or error.get("detail") or error.get("code")
    return "" if error is None else shorten(error if isinstance(error, str) else str(error))


def http_error_message(body: bytes) -> str:
    """The server's words in the body of an HTTP error: JSON, flat or nested, or plain text."""
    try:
        return error_message(msgspec.json.decode(body)) or shorten(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return shorten(body)


def shorten(text: str | bytes, limit: int = MAX_ERROR_CHARS) -> str:
    """One line of at most `limit` characters."""
    if isinstance(text, bytes):
        text = text[: 8 * limit].decode(errors="replace")
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1] + "…"

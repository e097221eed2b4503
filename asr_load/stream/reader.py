"""Parse socket reads into timed events and an outcome, for all dialects of engines. No I/O.

Supported are chat.completion.chunk and transcription.chunk of SGLang and vLLM, OpenAI's transcript.text.*,
faster-whisper-server's segments, whole chat.completion and transcription bodies of servers that do not stream, and the
various forms of errors of servers and gateways. The first bytes of a body, not its content type, decide what it is.
"""

from __future__ import annotations

import bisect
import html
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from asr_load.decode import Malformed, decode
from asr_load.stream import events
from asr_load.stream.limits import MAX_BYTES, MAX_EVENT_BYTES, MAX_EVENT_LINES, MAX_EVENTS, MAX_STREAM_BYTES
from asr_load.stream.numbers import count_in
from asr_load.text import shorten, whole_characters

GOOD_ENDS = frozenset(
    (
        # OpenAI's chat completions, SGLang, vLLM, llama.cpp
        *("stop", "length", "tool_calls", "function_call"),
        # Hugging Face's text-generation-inference
        *("eos_token", "stop_sequence"),
        "eos",  # Together
        "model_length",  # Mistral
        # Anthropic's stop_reason, and Gemini's and Cohere's (in capitals), as gateways forward them
        *("end_turn", "max_tokens", "tool_use", "complete"),
    )
)
"""Values of finish_reason, in lower case, with which the model finished. Any other is a failure."""

GRACE_S = {True: 1.0, False: 5.0}
"""Seconds for the body to end after its terminator (True), or after only a finish_reason (False).

Reading to the end keeps the connection usable, but a body that never ends must not hold the user."""

BOM = b"\xef\xbb\xbf"

STEP_BYTES = 64 << 10
"""Bytes to parse before other greenlets may have a turn, which take a few milliseconds."""

SINGLE_STEP_BYTES = 16 << 10
"""The same, for events that are parsed one by one."""

MAX_BLANKS = 4096
"""Bytes to search at the beginning of a body for the first non-blank one, which decides what the body is."""

_ALIVE = frozenset(("ping", "keepalive", "keep-alive", "keep_alive", "heartbeat", "status", "progress", "info"))
"""Names and types of events that only keep the connection alive."""

_FINE = (0, 200, "0", "200", "ok", "OK", "success", None)
"""Values of `code` with which a message is not an error."""

_DONE = b"[DONE]"


class ProtocolError(Exception):
    """The server sent something other than an event stream of a known dialect."""


# gc=False: these have no reference cycles, and thousands are made per second.
class _Message(msgspec.Struct, gc=False):
    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    error: Any = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None
    type: Any = None
    delta: Any = None
    text: Any = None
    # Without choices, these fields may contain an error.
    message: Any = None
    detail: Any = None
    errors: Any = None
    msg: Any = None
    code: Any = None
    success: Any = None
    base_resp: Any = None


_decoder = msgspec.json.Decoder(_Event)


def _complaint(event: _Event) -> Any:
    """The error in an event: the server's message, or an object that contains it; a false value without an error."""
    if event.error:
        return event.message or True if event.error is True else event.error
    if event.choices:
        return event.choices[0].error
    if event.object == "error" or (isinstance(event.type, str) and event.type.endswith("error")):
        return event.message or event.detail or event.msg or event.errors or True
    if isinstance(event.base_resp, dict) and event.base_resp.get("status_code") not in _FINE:
        return event.base_resp
    is_fine = event.success is True or (event.code is not None and event.code in _FINE)
    is_alive = isinstance(event.type, str) and event.type in _ALIVE
    if is_fine or is_alive or event.text is not None:
        return None
    return event.errors or event.detail or event.message or event.msg or event.success is False or event.code


class Answer:
    """The content of one response: chunks with the times of their reads, usage, and how it ended.

    Times have the unit of the reads' stamps: nanoseconds of `time.perf_counter_ns`.
    """

    def __init__(self) -> None:
        self.times: list[int] = []
        """Arrival times of the non-empty content and reasoning chunks."""
        self.parts: list[str] = []
        """Texts of the content chunks. Reasoning is counted and timed, but is not part of the transcript."""
        self.part_times: list[int] = []
        """Arrival times of `parts`."""
        self.finish_reason: str | None = None
        self.done = False
        """Whether the terminator arrived: `[DONE]`, OpenAI's transcript.text.done, or the end of a whole body."""
        self.error: str | None = None
        """The server's message for an error that it sent as an event."""
        self.error_code: int | None = None
        """The code of that error, like a status of HTTP."""
        self.streamed = True
        self.framed = False
        """Whether the end of the body is distinguishable from a broken connection: it has chunks or a length."""
        self._parser = events.Parser()
        self._parsed = 0
        self._events = 0
        self._segments = False
        """Whether the text arrives in segments, a dialect without a terminator."""
        self._message_pieces = 0
        """Number of parts that arrived in messages, if all of them did; -1 once a message had the whole text."""
        self._spaced = False
        """Whether the parts include the spaces between them, as parts of a whole text do."""
        self._finished = False
        """Whether a finish_reason arrived, and no content after it."""
        self._went_on = False
        """Whether content ever arrived after a finish_reason, which was therefore not the end."""
        self.output_tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None

    @property
    def text(self) -> str:
        """The transcript: all content. Joins segments with spaces if they have none themselves."""
        stripped = self._segments and not self._spaced and all(part == part.strip() for part in self.parts)
        return whole_characters((" " if stripped else "").join(self.parts))

    def time_of(self, position: int) -> int | None:
        """When the first non-space character of the text from `position` on arrived; None without one."""
        for part, at in zip(self.parts, self.part_times, strict=True):
            if part[max(position, 0) :].strip():
                return at
            position -= len(part)
        return None

    @property
    def is_complete(self) -> bool:
        """Whether the response is complete, whatever happened to its connection afterwards."""
        return self.done or self._finished

    @property
    def grace_s(self) -> float:
        """Seconds in which the body must end; infinite while more content may arrive."""
        complete = self.done or (self._finished and not self._went_on)
        return GRACE_S[self.done] if complete else float("inf")

    def outcome(self) -> str:
        """The outcome of a response whose body ended, or that was complete before its connection broke."""
        if self.error is not None:
            return "stream_error"
        if self.finish_reason is not None and not _is_good(self.finish_reason):
            return "aborted"
        if not (self.done or self.finish_reason is not None or (self._segments and self.framed)):
            return "cut"
        return "ok" if self.text.strip() else "empty"

    def steps(self, body: bytes, stamps: Sequence[int], ends: Sequence[int], ended: bool) -> Iterator[None]:
        """Parse the part of a body that was collected so far, in steps of a few milliseconds; call it again with more.

        `stamps` and `ends`, shape (n,), are the times of its reads and their ends in `body`. The time of an event is
        that of the read that completed it. Raises ProtocolError.
        """
        at = self._parsed or (len(BOM) if body.startswith(BOM) else 0)
        if _is_whole(body[:MAX_BLANKS]):
            if len(body) > MAX_BYTES:
                raise ProtocolError(f"a response of more than {MAX_BYTES} bytes that is not streamed")
            if ended:
                self.read_whole(body[at:], stamps[-1])
            return
        size = min(len(body), MAX_STREAM_BYTES)
        while at < size:
            limit = min(at + STEP_BYTES, size)
            before, at = at, self._take_plain_events(body, at, limit, stamps, ends)
            if at == before:
                at = self._take_events(body, at, min(at + SINGLE_STEP_BYTES, size), stamps, ends)
            self._parsed = at
            if at == before:
                break
            yield
        if len(body) > size:
            raise ProtocolError(f"a stream of more than {MAX_STREAM_BYTES} bytes")
        if len(body) - at > MAX_EVENT_BYTES:
            raise ProtocolError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        if ended and at < len(body):
            self._take_event(body[at:], stamps[-1])
        if ended and not self._events and body.strip() and not body.startswith(b":"):
            raise ProtocolError(f"not a stream of events: {shorten(body)}")

    def _take_events(self, body: bytes, at: int, limit: int, stamps: Sequence[int], ends: Sequence[int]) -> int:
        """Parse events one by one: the next one, and those that end before `limit`. Returns where they end."""
        read = bisect.bisect_left(ends, at + 1)
        for match in events.event_ends(body, at, MAX_STREAM_BYTES):
            start, end = match.span()
            while ends[read] < end:
                read += 1
            self._parsed = end
            self._take_event(body[at:start], stamps[read])
            at = end
            if at >= limit:
                break
        return at

    def _take_plain_events(
        self, body: bytes, start: int, limit: int, stamps: Sequence[int], ends: Sequence[int]
    ) -> int:
        """Parse all complete events up to `limit` at once, much faster, if all have a simple form. Returns where they
        end; if any is an error or has another form, or the finder was not compiled, takes none and returns `start`."""
        if events.find is None:
            return start
        first, last = bisect.bisect_left(ends, start + 1), bisect.bisect_left(ends, limit) + 1
        found = events.find(body, start, stamps[first:last], ends[first:last], limit)
        if found is None:
            return start
        objects, times, done, end = found
        try:
            body.isascii() or body[start:end].decode()
            decoded = _decoder.decode_lines(objects)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return start
        if len(decoded) != len(times) or any(map(_complaint, decoded)):
            return start
        self._note_events(len(decoded) + done)
        for event, at in zip(decoded, times, strict=True):
            self._accept(event, at)
        self.done = self.done or done
        return end

    def _note_events(self, count: int) -> None:
        self._events += count
        if self._events > MAX_EVENTS:
            raise ProtocolError(f"a stream of more than {MAX_EVENTS} events")

    def _take_event(self, block: bytes, at: int) -> None:
        if len(block) > MAX_EVENT_BYTES:
            raise ProtocolError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        if len(block) > MAX_EVENT_LINES and len(block.splitlines()) > MAX_EVENT_LINES:
            raise ProtocolError(f"an event of more than {MAX_EVENT_LINES} lines")
        try:
            event = self._parser.parse(block)
        except UnicodeDecodeError as error:
            raise ProtocolError(f"the stream is not UTF-8: {error.reason}") from error
        if event is not None:
            name, data = event
            self._note_events(1)
            self._take(name, data.encode(), at)

    def read_whole(self, body: bytes, at: int) -> None:
        """Parse a body that is not streamed and was complete at the time `at`. Raises ProtocolError."""
        self.streamed = False
        event = _decode(body)
        self._apply(event, body, at)
        if self.error is None and event.choices is None and event.text is None:
            self.error = http_error_message(body)  # without a transcript, the body is an error
        self.done = True

    def _take(self, name: str, data: bytes, at: int) -> None:
        data = data.strip()
        if name.endswith("error"):
            self._complain(http_error_message(data), "an event named error, without a message")
        elif data == _DONE:
            self.done = True
        elif name in _ALIVE or data in (b"", b"null"):
            pass  # it keeps the connection alive
        elif name == "message" or data[:1] in (b"{", b"["):
            self._apply(_decode(data), data, at)

    def _complain(self, words: str, otherwise: str | bytes) -> None:
        """Keep the server's first error."""
        if self.error is None:
            self.error = words or shorten(otherwise)

    def _apply(self, event: _Event, data: bytes, at: int) -> None:
        if complaint := _complaint(event):
            self._complain("" if complaint is True else error_message(complaint), data)
            self.error_code = count_in(complaint.get("code") if isinstance(complaint, dict) else event.code)
        else:
            self._accept(event, at)

    def _accept(self, event: _Event, at: int) -> None:
        """Process an event that is not an error."""
        if event.usage is not None:
            self._count(event.usage)
        if event.choices:
            choice = event.choices[0]
            if choice.message is not None:
                self._take_message(choice, choice.message, at)
            elif (delta := choice.delta) is not None:
                self._add(delta.content, delta.reasoning_content or delta.reasoning, at)
            if choice.finish_reason:
                self._finish(choice.finish_reason)
        elif event.type == "transcript.text.delta":
            self._add(event.delta, None, at)
        elif event.type == "transcript.text.done":
            self._take_whole(_content(event.text), at)
            self.done = True
        elif event.text is not None and event.choices is None:
            self._take_segment(event, at)

    def _take_message(self, choice: _Choice, message: _Message, at: int) -> None:
        """Process a message, which contains the whole text so far. Together with a delta it adds nothing, unless it is
        the last one and differs from the delta."""
        delta, text = choice.delta, _content(message.content)
        piece = "" if delta is None else _content(delta.content)
        if piece and choice.finish_reason and text not in ("", piece):
            self._take_whole(text, at)  # includes the last piece
            return
        if delta is not None:
            self._add(piece, delta.reasoning_content or delta.reasoning, at)
        if text and not piece:
            self._take_message_text(text, at)
        elif delta is None and not self.parts:
            self._add(None, message.reasoning_content or message.reasoning, at)

    def _take_message_text(self, text: str, at: int) -> None:
        """Process a message's text: the whole text so far or, from some servers, a piece that belongs in a delta."""
        if not self.parts or (self._message_pieces == len(self.parts) and not text.startswith(self.text)):
            self._add(text, None, at)
            self._message_pieces = len(self.parts)
        else:
            self._take_whole(text, at)
            self._message_pieces = -1

    def _take_segment(self, event: _Event, at: int) -> None:
        """Process the text of a segment, or the whole text that follows its deltas or segments."""
        text = _content(event.text)
        if self.parts and not self._segments:
            if event.type != "transcript.text.segment":  # OpenAI's segments repeat the deltas of one speaker
                self._take_whole(text, at)
        elif len(self.parts) > 1 and "".join(text.split()) == "".join(self.text.split()):
            self._take_whole(text, at)
        else:
            self._segments = self.streamed
            self._add(text, None, at)

    def _take_whole(self, text: str, at: int) -> None:
        """Replace the parts with the whole text, unless it is empty. Parts that agree with it except for spaces keep
        their times; the rest of the text gets the time `at`."""
        if text == self.text or (self.parts and not text.strip()):
            return
        kept, end = self.parts, len(before := whole_characters("".join(self.parts)))
        if not text.startswith(before):
            kept, end = _respaced(self.parts, text)
        rest = text[end:]
        if kept and not rest.strip():
            kept[-1], rest = kept[-1] + rest, ""
        self.parts, self.part_times, self._spaced = kept, self.part_times[: len(kept)], True
        self._add(rest, None, at)

    def _finish(self, reason: str) -> None:
        self._finished = True
        if self.finish_reason is None or _is_good(self.finish_reason):
            self.finish_reason = shorten(reason)

    def _add(self, content: Any, reasoning: str | None, at: int) -> None:
        if content and type(content) is not str:
            content = _joined(content)
        if content or reasoning:
            self.times.append(at)
            if self._finished:
                self._finished, self._went_on = False, True
        if content:
            self.parts.append(content)
            self.part_times.append(at)

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        output, prompt = count_in(usage.get("output_tokens")), count_in(usage.get("input_tokens"))
        self.output_tokens = count_in(usage.get("completion_tokens")) if output is None else output
        self.prompt_tokens = count_in(usage.get("prompt_tokens")) if prompt is None else prompt
        if isinstance(details := usage.get("prompt_tokens_details"), dict):
            self.cached_tokens = count_in(details.get("cached_tokens"))


def _is_good(finish_reason: str) -> bool:
    return finish_reason.lower() in GOOD_ENDS


def _is_whole(body: bytes) -> bool:
    """Whether a body with this beginning is JSON and not a stream: no line of a stream begins with a bracket."""
    return body[:MAX_BLANKS].removeprefix(BOM).lstrip()[:1] in (b"{", b"[")


def _decode(data: bytes) -> _Event:
    try:
        # The same nesting limit as for events that are decoded together.
        return decode(data, _Event, lenient=True, depth=None)
    except Malformed as error:
        raise ProtocolError(f"not an event of a transcript ({error}): {shorten(data)}") from error


def _joined(parts: Any) -> str:
    """The text of content in the form of a list of parts: strings, or objects with a text."""
    if not isinstance(parts, list):
        raise ProtocolError(f"the content is not text: {_shown(parts)}")
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def _content(content: Any) -> str:
    """The text of a message's content, as a string or a list of parts."""
    return content if isinstance(content, str) else _joined(content) if content else ""


def _respaced(parts: Sequence[str], text: str) -> tuple[list[str], int]:
    """The leading parts with which `text` begins, ignoring spaces. Returns them with the text's spaces, and where they
    end in the text."""
    kept, end = list[str](), 0
    for part in parts:
        start = end
        for char in "".join(part.split()):
            while text[end : end + 1].isspace():
                end += 1
            if text[end : end + 1] != char:
                return kept, start
            end += 1
        kept.append(text[start:end])
    return kept, end


_WORDS = ("message", "error", "detail", "msg", "status_msg", "base_resp", "errors", "code")
"""Fields in which servers put an error's message, in order of preference."""


def error_message(error: Any) -> str:
    """The server's message in an error, nested or flat, as one line."""
    while isinstance(error, dict):
        error = next((error[name] for name in _WORDS if error.get(name)), None)
    match error:
        case [str() | {"message": _} as only]:
            return error_message(only)
    return "" if error is None else _shown(error)


def _shown(value: Any) -> str:
    try:
        return shorten(str(value))
    except RecursionError:
        return "a value nested too deeply to print"


def http_error_message(body: bytes) -> str:
    """The server's message in the body of an HTTP error: flat or nested JSON, plain text, or the text of a web page."""
    try:
        return error_message(decode(body)) or shorten(body)
    except Malformed:
        return shorten(_text_of_page(body) or body)


MAX_PAGE_BYTES = 4096
"""Maximum bytes of an HTML page to search for text: thousands of open tags would take quadratic time."""

_UNSEEN = re.compile(r"<(head|script|style)\b.*?</\1\s*>|<[^>]*>", re.DOTALL | re.IGNORECASE)


def _text_of_page(body: bytes) -> str:
    """The text of an HTML page, such as a proxy's error; empty for anything else."""
    text = body[:MAX_PAGE_BYTES].decode(errors="replace").lstrip()
    return html.unescape(_UNSEEN.sub(" ", text)).strip() if text[:9].lower().startswith(("<html", "<!doctype")) else ""

"""From socket reads to timed events, whatever the engine's dialect, and to a stream's outcome. Nothing here does I/O.

Dialects that are read: chat.completion.chunk and transcription.chunk of SGLang and vLLM, OpenAI's transcript.text.*,
faster-whisper-server's segments, whole chat.completion and transcription bodies where a server answers without
streaming, and errors in all the shapes that servers and gateways give them. What a body is, its first bytes say, and
not its content type.
"""

from __future__ import annotations

import bisect
import html
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from sseclient import SSEClient

from asr_load.decode import Malformed, decode
from asr_load.stream import events
from asr_load.stream.limits import MAX_BYTES, MAX_EVENT_BYTES, MAX_EVENT_LINES, MAX_EVENTS, MAX_STREAM_BYTES
from asr_load.stream.numbers import count_in
from asr_load.text import SILENT, shorten, whole_characters

GOOD_ENDS = frozenset(
    (
        # OpenAI's chat completions, SGLang, vLLM, llama.cpp
        *("stop", "length", "tool_calls", "function_call"),
        # Hugging Face's text-generation-inference
        *("eos_token", "stop_sequence"),
        "eos",  # Together
        "model_length",  # Mistral
        # Anthropic's stop_reason, and Gemini's and Cohere's words (in capitals), as gateways hand them on
        *("end_turn", "max_tokens", "tool_use", "complete"),
    )
)
"""Words of a finish_reason, in small letters, that say that the model came to an end. Any other is a failure."""

GRACE_S = {True: 1.0, False: 5.0}
"""Seconds in which a body must end once its answer is complete: after its terminator, or after a finish_reason alone.

Reading on to the end is what keeps the connection; a server that never ends it must not hold the user."""

BOM = b"\xef\xbb\xbf"

STEP_BYTES = 64 << 10
"""How much of a body is parsed before others may have their turn: in a few milliseconds."""

MAX_BLANKS = 4096
"""Bytes at the beginning of a body, of which the first that is not blank says what it is."""

_ALIVE = frozenset(("ping", "keepalive", "keep-alive", "keep_alive", "heartbeat", "status", "progress", "info"))
"""Names and types of events that say that a server is still there, and nothing else."""

_FINE = (0, 200, "0", "200", "ok", "OK", "success", None)
"""What a `code` says where a message beside it is no complaint."""

_event_ends = re.compile(rb"\n\n|\r\n\r\n|\r\r").finditer
_DONE = b"[DONE]"


class ProtocolError(Exception):
    """The server sent something that is no event stream of any known dialect."""


# gc=False: none of them refers to another that refers back to it, and there are thousands a second.
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
    # Where there are no choices, what a server may complain in.
    message: Any = None
    detail: Any = None
    errors: Any = None
    msg: Any = None
    code: Any = None
    success: Any = None
    base_resp: Any = None


_decoder = msgspec.json.Decoder(_Event)


def _complaint(event: _Event) -> Any:
    """What an event complains of: the server's words, or what holds them; something false if it does not."""
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
    """What one answer said: content chunks with the time of their reads, usage, and how it ended.

    Times are whatever `clock` gives; the harness uses `time.perf_counter_ns`, in nanoseconds.
    """

    def __init__(self) -> None:
        self.times: list[int] = []
        """When each non-empty content or reasoning chunk came."""
        self.parts: list[str] = []
        """The text of each content chunk; reasoning is counted and timed, but is not part of the transcript."""
        self.part_times: list[int] = []
        """When each of them came."""
        self.finish_reason: str | None = None
        self.done = False
        """The terminator came: `[DONE]`, OpenAI's transcript.text.done, or the end of a whole body."""
        self.error: str | None = None
        """The server's own words for an error that it sent as an event."""
        self.error_code: int | None = None
        """The status that came with them, as of HTTP."""
        self.streamed = True
        self.framed = False
        """Whether a body's end can be told from a connection that broke: it came in chunks, or with its length."""
        self._parsed = 0
        self._events = 0
        self._segments = False
        """Whether the text comes in segments: that dialect has no terminator."""
        self._message_pieces = 0
        """How many of the parts came in messages, if all of them did; -1 once a message had the whole text."""
        self._spaced = False
        """Whether the parts have the spaces that are between them, as of a whole text."""
        self._finished = False
        """Whether a finish_reason came, and no content after it."""
        self._went_on = False
        """Whether content ever came after a finish_reason, which so was none."""
        self.output_tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None

    @property
    def text(self) -> str:
        """The transcript: content as it came. Segments that came without a space between them are set apart by one."""
        stripped = self._segments and not self._spaced and all(part == part.strip() for part in self.parts)
        return whole_characters((" " if stripped else "").join(self.parts))

    def came(self, position: int) -> int | None:
        """When the first character of the text from a position on came that is no space; None if there is none."""
        for part, at in zip(self.parts, self.part_times, strict=True):
            if part[max(position, 0) :].strip():
                return at
            position -= len(part)
        return None

    @property
    def said_its_end(self) -> bool:
        """Whether the answer is complete, however its connection went on."""
        return self.done or self._finished

    @property
    def grace_s(self) -> float:
        """Seconds that the body may take to end; no limit while more content may come."""
        complete = self.done or (self._finished and not self._went_on)
        return GRACE_S[self.done] if complete else float("inf")

    def outcome(self) -> str:
        """The outcome of an answer whose body ended, or that had said its end before its connection broke."""
        if self.error is not None:
            return "stream_error"
        if self.finish_reason is not None and not _is_good(self.finish_reason):
            return "aborted"
        if not (self.done or self.finish_reason is not None or (self._segments and self.framed)):
            return "cut"
        return "ok" if self.text.strip() else "empty"

    def read_events(self, reads: Iterable[bytes], clock: Callable[[], int]) -> None:
        """Read a body of server-sent events to its end. Raises ProtocolError, and what `reads` raises.

        Each event gets the time at which the read that completed it returned.
        """
        stamped = _StampedReads(reads, clock)
        try:
            for event in _Events(iter(stamped)).events():
                self._note_events(1)
                self._take(event.event, event.data.encode(), stamped.at)
        except UnicodeDecodeError as error:
            raise ProtocolError(f"the stream is not UTF-8: {error.reason}") from error
        if stamped.whole is not None:
            self.read_whole(bytes(stamped.whole), stamped.at)
        elif not self._events and stamped.beginning.strip() and not stamped.beginning.startswith(b":"):
            raise ProtocolError(f"not a stream of events: {shorten(stamped.beginning)}")

    def read_collected(self, body: bytes, stamps: Sequence[int], ends: Sequence[int], ended: bool) -> None:
        """Read a body of server-sent events that was collected before, as far as it has come; call it again with more.

        `stamps` and `ends` are of its reads, shape (n,): when each came, and where in `body` it ended. Gives what
        `read_events` gives for the same reads; its speed is why there are two. Raises ProtocolError.
        """
        for _ in self.steps(body, stamps, ends, ended):
            pass

    def steps(self, body: bytes, stamps: Sequence[int], ends: Sequence[int], ended: bool) -> Iterator[None]:
        """What `read_collected` does, in steps of a few milliseconds."""
        at = self._parsed or (len(BOM) if body.startswith(BOM) else 0)
        if _is_whole(body[:MAX_BLANKS]):
            if len(body) > MAX_BYTES:
                raise ProtocolError(f"an answer of more than {MAX_BYTES} bytes that is not streamed")
            if ended:
                self.read_whole(body[at:], stamps[-1])
            return
        size = min(len(body), MAX_STREAM_BYTES)
        while at < size:
            limit = min(at + STEP_BYTES, size)
            before, at = at, self._take_plain_events(body, at, limit, stamps, ends)
            if at == before:
                at = self._take_events(body, at, limit, stamps, ends)
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
        """Take events one by one: the next one, and those that end before a limit. Returns where they end."""
        read = bisect.bisect_left(ends, at + 1)
        for match in _event_ends(body, at, MAX_STREAM_BYTES):
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
        """Take all whole events up to a limit at once, in a third of the time, if each is as engines send it. Returns
        where they end; `start`, with none of them taken, if any is of another kind, or an error."""
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
        if not block.isascii():
            try:
                block.decode()
            except UnicodeDecodeError as error:
                raise ProtocolError(f"the stream is not UTF-8: {error.reason}") from error
        if block.startswith(b":") and b"\r" not in block:  # a comment, which keeps a connection alive
            block = block.partition(b"\n")[2]
        name = b""
        if block.startswith(b"data: ") and b"\n" not in block and b"\r" not in block:
            values = [block[6:]]
        else:
            values = []
            for line in _name_errors(block).splitlines():
                field, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                if field == b"data":
                    values.append(value)
                elif field == b"event":
                    name = value
        if values:
            self._note_events(1)
            self._take(name.decode(), b"\n".join(values), at)

    def read_whole(self, body: bytes, at: int) -> None:
        """Take a body that is not streamed, complete at the time `at`. Raises ProtocolError."""
        self.streamed = False
        event = _decode(body)
        self._apply(event, body, at)
        if self.error is None and event.choices is None and event.text is None:
            self.error = http_error_message(body)  # it is no answer, so it says why there is none
        self.done = True

    def _take(self, name: str, data: bytes, at: int) -> None:
        data = data.strip()
        if name.endswith("error"):
            self._complain(http_error_message(data), "an event named error, without a word")
        elif data == _DONE:
            self.done = True
        elif name in _ALIVE or data in (b"", b"null"):
            pass  # it keeps the connection alive
        elif name in ("", "message") or data[:1] in (b"{", b"["):
            self._apply(_decode(data), data, at)

    def _complain(self, words: str, otherwise: str | bytes) -> None:
        """Keep the first of what the server complained of."""
        if self.error is None:
            self.error = words or shorten(otherwise)

    def _apply(self, event: _Event, data: bytes, at: int) -> None:
        if complaint := _complaint(event):
            self._complain("" if complaint is True else error_message(complaint), data)
            self.error_code = count_in(complaint.get("code") if isinstance(complaint, dict) else event.code)
        else:
            self._accept(event, at)

    def _accept(self, event: _Event, at: int) -> None:
        """Take an event that complains of nothing."""
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
        """Take a message, which has the whole text so far. Beside a delta with text it says nothing new, unless it is
        the last one and differs from that."""
        delta, text = choice.delta, _content(message.content)
        piece = "" if delta is None else _content(delta.content)
        if piece and choice.finish_reason and text not in ("", piece):
            self._take_whole(text, at)  # which has the last piece too
            return
        if delta is not None:
            self._add(piece, delta.reasoning_content or delta.reasoning, at)
        if text and not piece:
            self._take_message_text(text, at)
        elif delta is None and not self.parts:
            self._add(None, message.reasoning_content or message.reasoning, at)

    def _take_message_text(self, text: str, at: int) -> None:
        """Take the whole text so far; or a piece of it, which some servers send in a message and not in a delta."""
        if not self.parts or (self._message_pieces == len(self.parts) and not text.startswith(self.text)):
            self._add(text, None, at)
            self._message_pieces = len(self.parts)
        else:
            self._take_whole(text, at)
            self._message_pieces = -1

    def _take_segment(self, event: _Event, at: int) -> None:
        """Take text that is a segment's, if it is not the whole text after its deltas or segments."""
        text = _content(event.text)
        if self.parts and not self._segments:
            if event.type != "transcript.text.segment":  # OpenAI's repeat the deltas of one speaker
                self._take_whole(text, at)
        elif len(self.parts) > 1 and "".join(text.split()) == "".join(self.text.split()):
            self._take_whole(text, at)
        else:
            self._segments = self.streamed
            self._add(text, None, at)

    def _take_whole(self, text: str, at: int) -> None:
        """Put the whole text, if there is any, in place of the parts that came. Parts that agree with it in more than
        their spaces keep their times; the rest of it came now."""
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
    """Whether a body that begins so is one JSON, and no stream: no line of a stream begins with a bracket."""
    return body[:MAX_BLANKS].removeprefix(BOM).lstrip()[:1] in (b"{", b"[")


def _decode(data: bytes) -> _Event:
    try:
        # As deep as those that are taken together.
        return decode(data, _Event, lenient=True, depth=None)
    except Malformed as error:
        raise ProtocolError(f"not an event of a transcript ({error}): {shorten(data)}") from error


def _joined(parts: Any) -> str:
    """The text of content that comes as a list of parts: text as it is, or in a field."""
    if not isinstance(parts, list):
        raise ProtocolError(f"content that is no text: {_shown(parts)}")
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def _content(content: Any) -> str:
    """The text of a message's content, however it comes."""
    return content if isinstance(content, str) else _joined(content) if content else ""


def _respaced(parts: Sequence[str], text: str) -> tuple[list[str], int]:
    """The first of the parts, as many as a text begins with but for its spaces, with the spaces that they have there;
    and where in the text they end."""
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


_error_line = re.compile(rb"(?:^|(?<=[\r\n]))(?:error:|event: ?[^\r\n]*error(?=[\r\n]|$))").sub


def _name_errors(block: bytes) -> bytes:
    """An event whose field is called error (llama.cpp's) as one that is named so; and one that is has data."""
    if b"error" not in block:
        return block
    return _error_line(lambda line: b"event: error\ndata:" if line[0] == b"error:" else line[0] + b"\ndata:", block)


class _Events(SSEClient):
    """sseclient's, with errors in fields of their own, which it would pass over, and with bounds: it joins what has
    come of an event anew for each of its lines."""

    def __init__(self, reads: Iterator[bytes]) -> None:
        super().__init__(reads)
        self._logger = SILENT
        self._pieces = reads

    def _read(self) -> Iterator[bytes]:
        pending, searched = bytearray(), 0
        for piece in self._pieces:
            pending += piece
            at = 0
            # All first: a match would keep the bytes from being taken out.
            for end in [match.end() for match in _event_ends(pending, max(0, searched - 3))]:
                yield self._whole(bytes(pending[at:end]))
                at = end
            del pending[:at]
            searched = len(pending)
            if searched > MAX_EVENT_BYTES:
                raise ProtocolError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        if pending:
            yield self._whole(bytes(pending))

    def _whole(self, block: bytes) -> bytes:
        if len(block) > MAX_EVENT_LINES and len(block.splitlines()) > MAX_EVENT_LINES:
            raise ProtocolError(f"an event of more than {MAX_EVENT_LINES} lines")
        return _name_errors(block)


class _StampedReads:
    """Hands reads on and remembers when the last one returned. Takes a whole answer, which is no stream, apart."""

    def __init__(self, reads: Iterable[bytes], clock: Callable[[], int]) -> None:
        self.at = 0
        self.beginning = b""
        self.whole: bytearray | None = None
        """The body, where it is no stream."""
        self._reads, self._clock = reads, clock

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for read in self._reads:
            self.at = self._clock()
            size += len(read)
            data = read
            is_open = BOM.startswith(self.beginning) or not self.beginning.removeprefix(BOM).strip()
            if is_open and len(self.beginning) < MAX_BLANKS:
                before, self.beginning = self.beginning, self.beginning + read
                if BOM.startswith(self.beginning):
                    continue  # the rest of a byte order mark is still to come
                data = self.beginning.removeprefix(BOM) if BOM.startswith(before) else read
                if _is_whole(self.beginning):
                    self.whole = bytearray()
            if self.whole is not None:
                self.whole += data
                if size > MAX_BYTES:
                    raise ProtocolError(f"an answer of more than {MAX_BYTES} bytes that is not streamed")
                continue
            if size > MAX_STREAM_BYTES:
                raise ProtocolError(f"a stream of more than {MAX_STREAM_BYTES} bytes")
            yield data


_WORDS = ("message", "error", "detail", "msg", "status_msg", "base_resp", "errors", "code")
"""Fields that servers put their words in, the plainest first."""


def error_message(error: Any) -> str:
    """The server's words in an error, nested or flat, as one line."""
    while isinstance(error, dict):
        error = next((error[name] for name in _WORDS if error.get(name)), None)
    if isinstance(error, list) and len(error) == 1 and (isinstance(error[0], str) or _has_message(error[0])):
        return error_message(error[0])
    return "" if error is None else _shown(error)


def _shown(value: Any) -> str:
    try:
        return shorten(str(value))
    except RecursionError:
        return "a value that is nested too deep to be shown"


def _has_message(error: Any) -> bool:
    return isinstance(error, dict) and "message" in error


def http_error_message(body: bytes) -> str:
    """The server's words in the body of an HTTP error: JSON, flat or nested, plain text, or the text of a web page."""
    try:
        return error_message(decode(body)) or shorten(body)
    except Malformed:
        return shorten(_text_of_page(body) or body)


MAX_PAGE_BYTES = 4096
"""Of a page that is searched for its words: one with thousands of open tags takes the square of its length."""

_UNSEEN = re.compile(r"<(head|script|style)\b.*?</\1\s*>|<[^>]*>", re.DOTALL | re.IGNORECASE)


def _text_of_page(body: bytes) -> str:
    """The words of a page in HTML, as proxies and other servers answer with; empty for anything else."""
    text = body[:MAX_PAGE_BYTES].decode(errors="replace").lstrip()
    return html.unescape(_UNSEEN.sub(" ", text)).strip() if text[:9].lower().startswith(("<html", "<!doctype")) else ""

"""Events of a stream as bytes, and the reference for parsing them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
from sseclient import SSEClient

from asr_load.stream import events
from asr_load.stream.events import event_ends, name_errors
from asr_load.stream.limits import MAX_BYTES, MAX_EVENT_BYTES, MAX_EVENT_LINES, MAX_STREAM_BYTES
from asr_load.stream.reader import BOM, MAX_BLANKS, Answer, ProtocolError, _is_whole
from asr_load.text import SILENT, shorten


def chunk(content: str | None = None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    if content is not None:
        delta["content"] = content
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def usage(tokens: int) -> dict[str, Any]:
    details = {"cached_tokens": 3}
    return {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens, "prompt_tokens_details": details}}


def sse(*objects: Any, done: bool = True) -> list[bytes]:
    lines = [f"data: {json.dumps(event)}\n\n".encode() for event in objects]
    return [*lines, b"data: [DONE]\n\n"] if done else lines


def read_collected(answer: Answer, body: bytes, stamps: Sequence[int], ends: Sequence[int], ended: bool) -> None:
    """Parse the part of a body that was collected so far."""
    for _ in answer.steps(body, stamps, ends, ended):
        pass


def read(reads: Iterable[bytes]) -> Answer:
    """Parse a stream in four ways that must agree: as it comes, with sseclient; collected and parsed at the end, with
    and without the compiled finder; collected and parsed after every read. The clock is the number of reads so far."""
    reads = list(reads)
    answer, at_the_end, singly, by_and_by = Answer(), Answer(), Answer(), Answer()
    ticks = itertools.count(1)
    body, ends = b"".join(reads), list(itertools.accumulate(map(len, reads)))
    try:
        read_events(answer, reads, lambda: next(ticks))
    except ProtocolError:
        with pytest.raises(ProtocolError):
            read_collected(at_the_end, body, range(1, len(reads) + 1), ends, ended=True)
        with pytest.raises(ProtocolError), mock.patch.object(events, "find", None):
            read_collected(singly, body, range(1, len(reads) + 1), ends, ended=True)
        raise
    else:
        read_collected(at_the_end, body, range(1, len(reads) + 1), ends, ended=True)
        for n in range(1, len(reads) + 1):
            read_collected(by_and_by, body[: ends[n - 1]], range(1, n + 1), ends[:n], ended=n == len(reads))
        assert public(by_and_by) == public(answer)
        with mock.patch.object(events, "find", None):
            read_collected(singly, body, range(1, len(reads) + 1), ends, ended=True)
        assert public(singly) == public(answer)
    assert public(at_the_end) == public(answer)
    return answer


def public(answer: Answer) -> dict[str, Any]:
    return {name: value for name, value in vars(answer).items() if not name.startswith("_")}


ROLE = chunk("", role="assistant")

Found = tuple[bytes, list[int], bool, int]
"""The events' JSON objects, one per line; their stamps; whether `[DONE]` follows them; and their end in the body."""

_GAP, _DATA, _DONE = b"\n\n", b"data: ", b"[DONE]"


def find_plain(
    body: bytes, start: int, stamps: Sequence[int], ends: Sequence[int], limit: int | None = None
) -> Found | None:
    """The reference for the compiled finder: find the complete events of a body from `start` up to `limit` (default:
    its end).

    Returns None unless each event is one `data:` line with a JSON object or, for the last one, `[DONE]`. Comments are
    allowed. `stamps` and `ends`, shape (n,), are the times of the body's reads and their ends in the body.
    """
    gap = body.rfind(_GAP, start, len(body) if limit is None else limit)
    end = start if gap < 0 else gap + len(_GAP)
    if body.find(b"\r", start, end) >= 0:
        return None
    lines: list[bytes] = []
    found_at: list[int] = []
    at, read, is_in_event = start, 0, False
    for line in body[start : max(start, end - 1)].split(b"\n"):
        at += len(line) + 1
        if line.startswith(_DATA) and not is_in_event:
            lines.append(line[len(_DATA) :])
            is_in_event = True
        elif not line and is_in_event:
            while ends[read] < at:
                read += 1
            found_at.append(stamps[read])
            is_in_event = False
        elif line and not line.startswith(b":"):
            return None
    done = lines[-1:] == [_DONE]
    if done:
        lines.pop()
        found_at.pop()
    # Check this, because the decoder would accept two objects in one line and none in the next.
    if not all(line.startswith(b"{") and line.endswith(b"}") for line in lines):
        return None
    return b"".join([line + b"\n" for line in lines]), found_at, done, end


def read_events(answer: Answer, reads: Iterable[bytes], clock: Callable[[], int]) -> None:
    """Read a body of server-sent events to its end, one by one as they arrive. Raises ProtocolError, and any error of
    `reads`.

    The time of an event is that at which the read that completed it returned.
    """
    stamped = _StampedReads(reads, clock)
    try:
        for event in _Events(iter(stamped)).events():
            answer._note_events(1)
            answer._take(event.event, event.data.encode(), stamped.at)
    except UnicodeDecodeError as error:
        raise ProtocolError(f"the stream is not UTF-8: {error.reason}") from error
    if stamped.whole is not None:
        answer.read_whole(bytes(stamped.whole), stamped.at)
    elif not answer._events and stamped.beginning.strip() and not stamped.beginning.startswith(b":"):
        raise ProtocolError(f"not a stream of events: {shorten(stamped.beginning)}")


class _Events(SSEClient):
    """sseclient with two additions: errors in separate fields, which it ignores, and limits, because its time is
    quadratic in an event's number of lines."""

    def __init__(self, reads: Iterator[bytes]) -> None:
        super().__init__(reads)
        self._logger = SILENT
        self._pieces = reads

    def _read(self) -> Iterator[bytes]:
        pending, searched = bytearray(), 0
        for piece in self._pieces:
            pending += piece
            at = 0
            # Collect all matches first, because a match object prevents resizing the bytearray.
            for end in [match.end() for match in event_ends(pending, max(0, searched - 3))]:
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
        return name_errors(block)


class _StampedReads:
    """Forwards reads and keeps the time at which the last one returned. Keeps back a body that is not a stream."""

    def __init__(self, reads: Iterable[bytes], clock: Callable[[], int]) -> None:
        self.at = 0
        self.beginning = b""
        self.whole: bytearray | None = None
        """The body, if it is not a stream."""
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
                    continue  # the byte order mark is incomplete
                data = self.beginning.removeprefix(BOM) if BOM.startswith(before) else read
                if _is_whole(self.beginning):
                    self.whole = bytearray()
            if self.whole is not None:
                self.whole += data
                if size > MAX_BYTES:
                    raise ProtocolError(f"a response of more than {MAX_BYTES} bytes that is not streamed")
                continue
            if size > MAX_STREAM_BYTES:
                raise ProtocolError(f"a stream of more than {MAX_STREAM_BYTES} bytes")
            yield data

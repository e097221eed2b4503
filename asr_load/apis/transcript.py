"""The server's events, items and texts for one utterance. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from operator import eq
from typing import Any

import msgspec

from asr_load.decode import Malformed, decode
from asr_load.languages import joined
from asr_load.stream.numbers import count_in
from asr_load.stream.reader import ProtocolError, error_message
from asr_load.text import shorten, whole_characters

MAX_TYPES, TYPE_CHARS = 100, 100
"""Maximum number of event types to count separately, and maximum length of a type; others are counted as OTHER."""

OTHER = "other"

MAX_ITEMS = 5000
"""Maximum items of an utterance, which are sorted at its end: one per 0.7 s of an hour."""


class ServerEvent(msgspec.Struct, gc=False):
    """The fields of an event that are used. Only the type is checked: other fields may hold any JSON, because servers
    add events with each release. Read them with `text_in`, `number_in` and `count_in`."""

    type: Any
    id: Any = None
    created: Any = None
    session: Any = None
    item: Any = None
    event_index: Any = None
    item_id: Any = None
    previous_item_id: Any = None
    segment_id: Any = None
    delta: Any = None
    text: Any = None
    transcript: Any = None
    audio_start_ms: Any = None
    audio_end_ms: Any = None
    usage: Any = None
    error: Any = None
    code: Any = None


def read_event(data: bytes) -> ServerEvent:
    """Read the event of a text frame. Raises ProtocolError unless it is a JSON object with a type."""
    try:
        event = decode(data, ServerEvent, lenient=True)
    except Malformed as error:
        raise ProtocolError(f"not an event of a realtime session: {error}") from None
    if not isinstance(event.type, str):
        event.type = OTHER
    return event


def text_in(value: Any) -> str | None:
    """The text in a field; None if it does not hold text."""
    return value if isinstance(value, str) else None


def tokens_in(usage: Any) -> int | None:
    """The output tokens of a usage; None if it counts something else, such as seconds."""
    if not isinstance(usage, dict):
        return None
    return count_in(usage.get("completion_tokens", usage.get("output_tokens")))


@dataclass
class Item:
    """A stretch of speech that the server transcribes separately: a turn or a segment."""

    parts: list[str] = field(default_factory=list)
    """Non-empty parts of the text, in order."""
    previous: str | None = None
    """The preceding item, if the server names it."""
    start_ms: float = 0.0
    """Start within the audio, if the server states it."""
    is_committed: bool = False
    is_done: bool = False
    """Whether its text is final, or it failed."""
    tokens: int | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def is_open(self) -> bool:
        """Whether it has a text but its audio is not committed yet."""
        return bool(self.parts) and not self.is_committed and not self.is_done


class Transcript:
    """The transcript of one utterance so far, by the server's events. Times are perf_counter nanoseconds. `earlier`
    holds the items of earlier utterances of the session, whose events are ignored."""

    streamed = True

    def __init__(self, earlier: Set[str] = frozenset()) -> None:
        self.earlier = earlier
        self.times: list[int] = []
        """Arrival times of new texts."""
        self.last_at = 0
        """Arrival time of the last event; 0 before it."""
        self.final_at: int | None = None
        """When the text became final."""
        self.events: Counter[str] = Counter()
        """Number of events by type."""
        self.error: str | None = None
        """The server's error: code and message."""
        self.failed: str | None = None
        """The error of the first failed item."""
        self.revised = 0
        """Number of withdrawn words."""
        self.positions: list[tuple[int, float]] = []
        """Arrival time of each text, and the second of the audio that it reaches, if the server states it."""
        self.speaking = False
        """Whether the server has detected a turn that has not ended."""
        self.turns = 0
        """Number of turns that the server ended itself."""
        self.ends = 0
        """Number of the client's messages that ended a part of the audio, or all of it."""
        self.refused = 0
        """Number of those that the server refused because no audio was left."""
        self.is_early = False
        """Whether a final text arrived before any part of the audio had ended, and so belongs to another utterance."""
        self.done = 0
        """Number of items that are done."""
        self._pending = 0
        """Number of items that are committed but not done."""
        self.done_at = 0
        """When the last item became done."""
        self.index: float = -1
        """The event_index of the last event."""
        self.items: dict[str, Item] = {}
        self.is_concluded = False
        """Whether the transcript of the whole utterance has arrived."""
        self._full_text: str | None = None
        self._tokens: int | None = None

    @property
    def text(self) -> str:
        """The transcript of the whole utterance; until it arrives, the texts of the items in order."""
        if self._full_text is not None:
            return whole_characters(self._full_text)
        texts = [self.items[id].text for id in self._in_order()]
        return whole_characters(texts[0] if len(texts) == 1 else joined(texts))

    @property
    def output_tokens(self) -> int | None:
        """Output tokens of all items; None unless the server counted them for each."""
        if self.is_concluded:
            return self._tokens
        counts = [item.tokens for item in self.items.values() if item.is_done]
        known = [count for count in counts if count is not None]
        return count_in(sum(known)) if known and len(known) == len(counts) else None

    def time_of(self, position: int) -> int | None:  # noqa: ARG002
        """None: it is unknown when a part of the text arrived, because later texts may replace it."""
        return None

    @property
    def expected(self) -> int:
        """The number of items to expect, by the ends of turns and of the audio so far."""
        return self.turns + self.ends - self.refused

    @property
    def is_settled(self) -> bool:
        """Whether everything that the server has announced is done."""
        return bool(self.done) and not self.speaking and not self._pending

    @property
    def needs_end(self) -> bool:
        """Whether the client must end the audio, because the server has not detected the end of each turn."""
        return not self.turns or self.speaking or any(item.is_open for item in self.items.values())

    def _in_order(self) -> list[str]:
        """Ids of the items in spoken order: each after the one that it names, else in the order of their commits."""
        ids = sorted(self.items, key=lambda id: self.items[id].start_ms)  # stable
        followers: dict[str | None, list[str]] = {}
        for id in ids:
            previous = self.items[id].previous
            followers.setdefault(previous if previous in self.items else None, []).append(id)
        order: dict[str, None] = {}
        waiting = followers.get(None, [])[::-1]
        while waiting:
            order[id := waiting.pop()] = None
            waiting += followers.get(id, [])[::-1]
        return [*order, *(id for id in ids if id not in order)]  # the rest refer to each other in a cycle

    def count(self, event: ServerEvent, at: int) -> None:
        """Count an event that arrived at the time `at`."""
        self.last_at = at
        kind = event.type if event.type in self.events else shorten(event.type, TYPE_CHARS)
        self.events[kind if kind in self.events or len(self.events) < MAX_TYPES else OTHER] += 1

    def item(self, id: str) -> Item:
        """The item with this id, created if necessary. Raises ProtocolError if there are too many."""
        if id not in self.items:
            if len(self.items) == MAX_ITEMS:
                raise ProtocolError(f"more than {MAX_ITEMS} items for one utterance")
            self.items[id] = Item()
        return self.items[id]

    def commit(self, id: str) -> None:
        """Note that the server has committed the item's audio. Commits define the order of items."""
        if not (item := self.item(id)).is_committed:
            item.is_committed = True
            self._pending += not item.is_done
            self.items[id] = self.items.pop(id)

    def append(self, id: str, delta: str, at: int) -> None:
        """Append to the item's text."""
        item = self.item(id)
        if delta and not item.is_done:
            item.parts.append(delta)
            self.times.append(at)

    def replace(self, id: str, text: str, at: int) -> None:
        """Replace the item's text."""
        item = self.item(id)
        before, item.parts = item.text, [text] if text else []
        self._compare(before, text, at)

    def finish(self, id: str, text: str | None, at: int, tokens: int | None = None) -> None:
        """Set the item's final text, once; None: its current text is final."""
        if not (item := self.item(id)).is_done:
            if text is not None:
                self.replace(id, text, at)
            item.is_done, item.tokens, self.done_at = True, tokens, at
            self.done += 1
            self._pending -= item.is_committed

    def conclude(self, text: str | None, at: int, tokens: int | None = None) -> None:
        """Set the transcript of the whole utterance, once; None: use that of the items."""
        if not self.is_concluded:
            before = self.text if self.items else ""
            self._full_text = before if text is None else text
            self._compare(before, self._full_text, at)
            self.is_concluded, self._tokens, self.done_at = True, tokens, at

    def _compare(self, before: str, text: str, at: int) -> None:
        """Note the time of a changed text, and count withdrawn words. Ignores white space."""
        old, new = before.split(), text.split()
        if "".join(old) == "".join(new):
            return
        kept = [*map(eq, old, new), False].index(False)  # faster than a loop over words
        self.revised += len(old) - kept
        if new:
            self.times.append(at)


def error_text(event: ServerEvent) -> str:
    """An error's code and message."""
    error, code = event.error, event.code
    if not isinstance(error, dict):
        return ": ".join(filter(None, map(error_message, (code, error))))
    parts = (error.get("code") or error.get("type") or code, error.get("message"))
    return ": ".join(filter(None, map(error_message, parts))) or shorten(str(error))

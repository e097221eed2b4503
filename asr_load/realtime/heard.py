"""What a server says of one utterance: its events, the items that they belong to, and the texts of these. No I/O."""

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

MOST_KINDS, KIND_CHARS = 100, 100
"""Types of events that are counted one by one, and the longest name of one; the rest is counted as OTHER."""

OTHER = "other"

MOST_ITEMS = 5000
"""Of an utterance: one for each 0.7 s of an hour. All of them are put in order at its end."""


class Event(msgspec.Struct, gc=False):
    """An event, as far as it is read. Only its type is checked: any other field may hold any JSON, as servers add
    events with each release. `text_in`, `number_in` and `count_in` read a field."""

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


def read_event(data: bytes) -> Event:
    """Read the event of a text frame. Raises ProtocolError unless it is a JSON object with a type."""
    try:
        event = decode(data, Event, lenient=True)
    except Malformed as error:
        raise ProtocolError(f"not an event of a realtime session: {error}") from None
    if not isinstance(event.type, str):
        event.type = OTHER
    return event


def text_in(value: Any) -> str | None:
    """The text in a field; None where it holds none."""
    return value if isinstance(value, str) else None


def tokens_in(usage: Any) -> int | None:
    """The output tokens that a usage counts; None where it counts none, for example seconds."""
    if not isinstance(usage, dict):
        return None
    return count_in(usage.get("completion_tokens", usage.get("output_tokens")))


@dataclass
class Item:
    """A stretch of speech that the server transcribes by itself: a turn, or a segment."""

    parts: list[str] = field(default_factory=list)
    """Of its text, in order; none is empty."""
    previous: str | None = None
    """The item before it, where the server names one."""
    start_ms: float = 0.0
    """Where in the audio it begins, where the server says so."""
    is_committed: bool = False
    is_done: bool = False
    """Whether it has its final text, or failed."""
    tokens: int | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def is_open(self) -> bool:
        """Whether it has a text, and its audio is not committed yet."""
        return bool(self.parts) and not self.is_committed and not self.is_done


class Heard:
    """What a server has said of one utterance. Times are perf_counter nanoseconds. `earlier` has the items of earlier
    utterances of the session: whatever comes of them is not of this one."""

    def __init__(self, earlier: Set[str] = frozenset()) -> None:
        self.earlier = earlier
        self.times: list[int] = []
        """When each new text came."""
        self.final_at: int | None = None
        self.events: Counter[str] = Counter()
        self.error: str | None = None
        """The server's words, the code before them."""
        self.failed: str | None = None
        self.revised = 0
        """Words that were withdrawn."""
        self.positions: list[tuple[int, float]] = []
        """When a text came, and up to which second of the audio it reaches, where the server says so."""
        self.speaking = False
        """Whether the server hears a turn that has not ended."""
        self.turns = 0
        """Turns that the server ended by itself."""
        self.ends = 0
        """Messages of ours that ended a part of the audio, or all of it."""
        self.refused = 0
        """Those of them that the server refused, as there was no audio left."""
        self.is_early = False
        """Whether a final text came before any part of the audio had ended: it is not of this utterance."""
        self.done = 0
        """Items that are done."""
        self._pending = 0
        """Items that are committed and not done."""
        self.done_at = 0
        """When the last item was done."""
        self.index: float = -1
        """The last event_index."""
        self.items: dict[str, Item] = {}
        self.is_concluded = False
        """Whether the transcript of the whole utterance has come."""
        self._whole: str | None = None
        self._tokens: int | None = None

    @property
    def text(self) -> str:
        """The transcript of the whole utterance or, before that comes, the texts of the items in their order."""
        texts = [self.items[id].text for id in self._in_order()]
        found = self._whole if self._whole is not None else texts[0] if len(texts) == 1 else joined(texts)
        return whole_characters(found)

    @property
    def tokens(self) -> int | None:
        """Output tokens of all items; None where the server did not count those of each."""
        if self.is_concluded:
            return self._tokens
        counts = [item.tokens for item in self.items.values() if item.is_done]
        known = [count for count in counts if count is not None]
        return count_in(sum(known)) if known and len(known) == len(counts) else None

    @property
    def expected(self) -> int:
        """How many items there are to be, by the ends of turns and of the audio so far."""
        return self.turns + self.ends - self.refused

    @property
    def is_settled(self) -> bool:
        """Whether all that the server has said it would transcribe is done."""
        return bool(self.done) and not self.speaking and not self._pending

    @property
    def needs_end(self) -> bool:
        """Whether a message of ours must end the audio: the server has not found the end of each turn by itself."""
        return not self.turns or self.speaking or any(item.is_open for item in self.items.values())

    def _in_order(self) -> list[str]:
        """Items as they were spoken: each behind the one that it names, else in the order of their commits."""
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
        return [*order, *(id for id in ids if id not in order)]  # the rest names each other in a circle

    def note(self, event: Event) -> None:
        """Count an event."""
        kind = event.type if event.type in self.events else shorten(event.type, KIND_CHARS)
        self.events[kind if kind in self.events or len(self.events) < MOST_KINDS else OTHER] += 1

    def item(self, id: str) -> Item:
        """The item of that id, from its first event on. Raises ProtocolError where there are too many."""
        if id not in self.items:
            if len(self.items) == MOST_ITEMS:
                raise ProtocolError(f"more than {MOST_ITEMS} items for one utterance")
            self.items[id] = Item()
        return self.items[id]

    def commit(self, id: str) -> None:
        """The server has taken the item's audio: items come in this order."""
        if not (item := self.item(id)).is_committed:
            item.is_committed = True
            self._pending += not item.is_done
            self.items[id] = self.items.pop(id)

    def append(self, id: str, delta: str, at: int) -> None:
        """Take a text that follows the item's text so far."""
        item = self.item(id)
        if delta and not item.is_done:
            item.parts.append(delta)
            self.times.append(at)

    def replace(self, id: str, text: str, at: int) -> None:
        """Take a text in place of the item's text so far."""
        item = self.item(id)
        before, item.parts = item.text, [text] if text else []
        self._compare(before, text, at)

    def finish(self, id: str, text: str | None, at: int, tokens: int | None = None) -> None:
        """Take the item's final text, once; None: what it has is final."""
        if not (item := self.item(id)).is_done:
            if text is not None:
                self.replace(id, text, at)
            item.is_done, item.tokens, self.done_at = True, tokens, at
            self.done += 1
            self._pending -= item.is_committed

    def conclude(self, text: str | None, at: int, tokens: int | None = None) -> None:
        """Take the transcript of the whole utterance, once; None: it is that of the items."""
        if not self.is_concluded:
            before = self.text if self.items else ""
            self._whole = before if text is None else text
            self._compare(before, self._whole, at)
            self.is_concluded, self._tokens, self.done_at = True, tokens, at

    def _compare(self, before: str, text: str, at: int) -> None:
        """Note what is new in a text, and what it has withdrawn; white space is neither."""
        old, new = before.split(), text.split()
        if "".join(old) == "".join(new):
            return
        kept = [*map(eq, old, new), False].index(False)  # without a step of Python for each word
        self.revised += len(old) - kept
        if new:
            self.times.append(at)


def error_words(event: Event) -> str:
    """What an error says, its code first."""
    error, code = event.error, event.code
    if not isinstance(error, dict):
        return ": ".join(filter(None, map(error_message, (code, error))))
    words = (error.get("code") or error.get("type") or code, error.get("message"))
    return ": ".join(filter(None, map(error_message, words))) or shorten(str(error))

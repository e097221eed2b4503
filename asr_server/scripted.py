"""Send text on a fixed schedule: a server with known TTFT and ITL, for checking a client's measurements."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cached_property

from asr_server.alarm import Alarm
from asr_server.engine import Audio, Clip, Piece, Script

DEFAULT_TEXT = (
    "the quick brown fox jumps over the lazy dog while seven wise owls watch the river turn to gold and "
    "somewhere behind the hill an old clock counts the hours that nobody will ask for again"
)
_BYTES_PER_SECOND = 32_000  # 16-bit mono at 16 kHz
_BYTES_PER_TOKEN = 1_280  # 40 ms of audio
_MAX_CHUNKS = 100_000  # of a script, which is held in memory: half an hour at 50 chunks a second


@dataclass
class ScriptedEngine:
    """Sends `tokens` words; token i is due at start + ttft + i * itl (seconds).

    The schedule is absolute: a late chunk is sent immediately, and the following ones keep their times. A chunk of
    several tokens is due with its first. The audio is not decoded: its length and `prompt_tokens` are computed from its
    size, as if it were 16-bit mono at 16 kHz.
    """

    tokens: int
    ttft: float
    itl: float
    tokens_per_chunk: int
    words: list[str]
    slots: int
    final: float = 0.1
    """Seconds from the end of the audio to the final text of a realtime session."""
    name: str = "scripted"

    def word(self, number: int) -> str:
        """A word of the text, by number."""
        return self.words[number % len(self.words)]

    @cached_property
    def _alarm(self) -> Alarm:
        return Alarm()  # made for the first request, because it belongs to the running loop

    @cached_property
    def _whole(self) -> Script:
        firsts = range(0, self.tokens, self.tokens_per_chunk)
        texts = [self._text(first, self._last(first, self.tokens)) for first in firsts]
        due = [self.ttft + first * self.itl for first in firsts]
        return Script.of(texts, due, self.tokens, self.tokens_per_chunk, "stop")

    async def prepare(self, audio: Audio) -> Clip:
        size = len(audio.data) * 3 // 4 if audio.base64 else len(audio.data)
        return Clip(seconds=size / _BYTES_PER_SECOND, prompt_tokens=size // _BYTES_PER_TOKEN)

    def script(self, max_tokens: int | None) -> Script | None:
        total = self._total(max_tokens)
        if not total or self.tokens > _MAX_CHUNKS * self.tokens_per_chunk:
            return None
        if total == self.tokens:
            return self._whole
        whole_chunks, rest = divmod(total, self.tokens_per_chunk)
        return self._whole.cut(whole_chunks, self._text(total - rest, total) if rest else None, total)

    async def generate(self, clip: Clip, max_tokens: int | None, start: float) -> AsyncGenerator[Piece, None]:  # noqa: ARG002
        total = self._total(max_tokens)
        for first in range(0, total, self.tokens_per_chunk):
            await self._alarm.wait_until(start + self.ttft + first * self.itl)
            last = self._last(first, total)
            yield Piece(self._text(first, last), last - first)
        yield Piece("", 0, "stop" if total == self.tokens else "length")

    def _total(self, max_tokens: int | None) -> int:
        return self.tokens if max_tokens is None else min(self.tokens, max_tokens)

    def _last(self, first: int, total: int) -> int:
        return min(first + self.tokens_per_chunk, total)

    def _text(self, first: int, last: int) -> str:
        words = self.words
        text = " ".join([words[i % len(words)] for i in range(first, last)])
        return " " + text if first else text

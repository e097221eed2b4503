"""Text on a fixed schedule: a server whose TTFT and ITL are known, to measure a client against."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cached_property

from asr_server.alarm import Alarm
from asr_server.engine import Audio, Clip, Piece

DEFAULT_TEXT = (
    "the quick brown fox jumps over the lazy dog while seven wise owls watch the river turn to gold and "
    "somewhere behind the hill an old clock counts the hours that nobody will ask for again"
)
_BYTES_PER_SECOND = 32_000  # 16-bit mono at 16 kHz
_BYTES_PER_TOKEN = 1_280  # 40 ms of it


@dataclass
class ScriptedEngine:
    """Sends `tokens` words; token i is due at start + ttft + i * itl (seconds).

    The schedule is absolute: what is late is sent at once and what follows keeps its time. A chunk of several tokens
    is due with its first. The audio is not decoded: its length and `prompt_tokens` are reckoned from its bytes, as if
    it were 16-bit mono at 16 kHz.
    """

    tokens: int
    ttft: float
    itl: float
    tokens_per_chunk: int
    words: list[str]
    slots: int
    name: str = "scripted"

    @cached_property
    def _alarm(self) -> Alarm:
        return Alarm()  # at the first request: it belongs to the running loop

    async def prepare(self, audio: Audio) -> Clip:
        size = len(audio.data) * 3 // 4 if isinstance(audio.data, str) else len(audio.data)
        return Clip(seconds=size / _BYTES_PER_SECOND, prompt_tokens=size // _BYTES_PER_TOKEN)

    async def generate(self, clip: Clip, max_tokens: int | None, start: float) -> AsyncGenerator[Piece, None]:  # noqa: ARG002
        total = self.tokens if max_tokens is None else min(self.tokens, max_tokens)
        words = self.words
        for first in range(0, total, self.tokens_per_chunk):
            await self._alarm.wait_until(start + self.ttft + first * self.itl)
            last = min(first + self.tokens_per_chunk, total)
            text = " ".join([words[i % len(words)] for i in range(first, last)])
            yield Piece(" " + text if first else text, last - first)
        yield Piece("", 0, "stop" if total == self.tokens else "length")

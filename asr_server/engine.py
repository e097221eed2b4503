"""What an engine is: it takes one clip and yields its text piece by piece."""

from array import array
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import msgspec
import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


class RequestError(Exception):
    """A request that cannot be served; its message goes to the client under HTTP `status`."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Audio(NamedTuple):
    """Audio as a request carried it."""

    data: bytes | memoryview
    """The file's bytes, as they are (transcriptions) or in base64 (chat)."""
    name: str
    """How an error message refers to it."""
    base64: bool


@dataclass(slots=True)
class Clip:
    """Audio made ready by the engine that will transcribe it."""

    seconds: float
    prompt_tokens: int
    """Known at the latest when the first piece comes."""
    samples: Samples | None = None
    """Mono, 16 kHz, -1 to 1; None where the engine does not listen."""


class Piece(NamedTuple):
    """One step of the engine. The text may be empty; `finish` is set on the last piece only, which adds no text."""

    text: str
    tokens: int
    finish: str | None = None


@dataclass(slots=True, frozen=True)
class Script:
    """A whole text that is known beforehand, and when each of its chunks is due."""

    texts: tuple[str, ...]
    """At least one; none is empty."""
    json_texts: tuple[bytes, ...]
    offsets: bytes
    """When each is due: nanoseconds after the request came into service, as int64 in native order."""
    tokens: int
    tokens_per_chunk: int
    """The last chunk may have fewer."""
    finish: str

    @classmethod
    def of(cls, texts: Sequence[str], due: Sequence[float], tokens: int, tokens_per_chunk: int, finish: str) -> Self:
        """`due`: seconds after the request came into service."""
        offsets = array("q", [round(seconds * 1e9) for seconds in due])
        json_texts = tuple(map(msgspec.json.encode, texts))
        return cls(tuple(texts), json_texts, offsets.tobytes(), tokens, tokens_per_chunk, finish)

    def cut(self, chunks: int, last: str | None, tokens: int) -> Self:
        """The first chunks and, if there is one, a shorter `last`, as a token limit leaves them."""
        texts, json_texts = self.texts[:chunks], self.json_texts[:chunks]
        if last is not None:
            texts, json_texts = (*texts, last), (*json_texts, msgspec.json.encode(last))
        offsets = self.offsets[: 8 * len(texts)]
        return type(self)(texts, json_texts, offsets, tokens, self.tokens_per_chunk, "length")

    def tokens_in(self, chunks: int) -> int:
        """How many tokens the first chunks have."""
        return min(chunks * self.tokens_per_chunk, self.tokens)


class Engine(Protocol):
    """All methods run on the event loop and must not block it."""

    name: str
    slots: int
    """Requests served at the same time; 0: no limit."""

    async def prepare(self, audio: Audio) -> Clip:
        """Make the audio ready, before the request queues for a slot.

        Raises:
            RequestError: the audio cannot be read.
        """

    def script(self, max_tokens: int | None) -> Script | None:
        """The text that `generate` would yield and its schedule, where both are known beforehand; else None."""

    def generate(self, clip: Clip, max_tokens: int | None, start: float) -> AsyncGenerator[Piece, None]:
        """Yield the text, the last piece with the finish reason `stop` or `length`.

        Closing the generator early frees what it uses. `start` (`time.perf_counter()` seconds) is when the request
        came into service.
        """

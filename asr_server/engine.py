"""The interface of engines, which take a clip and yield its text piece by piece."""

from array import array
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import msgspec
import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


class RequestError(Exception):
    """A request cannot be served. The client gets the message with HTTP `status`."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Audio(NamedTuple):
    """The audio of a request."""

    data: bytes | memoryview
    """The file's bytes (transcriptions), or their base64 (chat)."""
    name: str
    """The audio's name in error messages."""
    base64: bool


@dataclass(slots=True)
class Clip:
    """Audio that the engine has prepared for transcription."""

    seconds: float
    prompt_tokens: int
    """Final when the first piece arrives, at the latest."""
    samples: Samples | None = None
    """Mono, 16 kHz, -1 to 1; None if the engine does not use the audio."""


class Piece(NamedTuple):
    """One step of the engine. The text may be empty; only the last piece has `finish`, and it adds no text."""

    text: str
    tokens: int
    finish: str | None = None


@dataclass(slots=True, frozen=True)
class Script:
    """A text that is known in advance, and the times at which its chunks are due."""

    texts: tuple[str, ...]
    """One or more non-empty texts."""
    json_texts: tuple[bytes, ...]
    offsets: bytes
    """When each is due: nanoseconds after the start of service, as int64 in native order."""
    tokens: int
    tokens_per_chunk: int
    """The last chunk may have fewer."""
    finish: str

    @classmethod
    def of(cls, texts: Sequence[str], due: Sequence[float], tokens: int, tokens_per_chunk: int, finish: str) -> Self:
        """Make a script. `due` are seconds after the start of service."""
        offsets = array("q", [round(seconds * 1e9) for seconds in due])
        json_texts = tuple(map(msgspec.json.encode, texts))
        return cls(tuple(texts), json_texts, offsets.tobytes(), tokens, tokens_per_chunk, finish)

    def cut(self, chunks: int, last: str | None, tokens: int) -> Self:
        """The script cut by a token limit: the first chunks, and a shorter `last` one if given."""
        texts, json_texts = self.texts[:chunks], self.json_texts[:chunks]
        if last is not None:
            texts, json_texts = (*texts, last), (*json_texts, msgspec.json.encode(last))
        offsets = self.offsets[: 8 * len(texts)]
        return type(self)(texts, json_texts, offsets, tokens, self.tokens_per_chunk, "length")

    def tokens_in(self, chunks: int) -> int:
        """The number of tokens in the first chunks."""
        return min(chunks * self.tokens_per_chunk, self.tokens)


class Engine(Protocol):
    """All methods run on the event loop and must not block it."""

    name: str
    slots: int
    """Requests served at the same time; 0: no limit."""

    async def prepare(self, audio: Audio) -> Clip:
        """Prepare the audio, before the request queues for a slot.

        Raises:
            RequestError: the audio cannot be read.
        """

    def script(self, max_tokens: int | None) -> Script | None:
        """The text that `generate` would yield and its schedule, if both are known in advance; else None."""

    def generate(self, clip: Clip, max_tokens: int | None, start: float) -> AsyncGenerator[Piece, None]:
        """Yield the text, the last piece with the finish reason `stop` or `length`.

        Closing the generator early frees its resources. `start` (`time.perf_counter()` seconds) is the start of
        service.
        """

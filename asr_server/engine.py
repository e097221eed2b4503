"""What an engine is: it takes one clip and yields its text piece by piece."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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

    data: str | bytes
    """Base64 text (chat), or the file's own bytes (transcriptions)."""
    name: str
    """How an error message refers to it."""


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


class Engine(Protocol):
    """Both methods run on the event loop and must not block it."""

    name: str
    slots: int
    """Requests served at the same time; 0: no limit."""

    async def prepare(self, audio: Audio) -> Clip:
        """Make the audio ready, before the request queues for a slot.

        Raises:
            RequestError: the audio cannot be read.
        """

    def generate(self, clip: Clip, max_tokens: int | None, start: float) -> AsyncGenerator[Piece, None]:
        """Yield the text, the last piece with the finish reason `stop` or `length`.

        Closing the generator early frees what it uses. `start` (`time.perf_counter()` seconds) is when the request
        came into service.
        """

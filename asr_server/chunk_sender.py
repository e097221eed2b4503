"""Send a response that is known in advance: each chunk on time, whatever else the server does.

In Python, a chunk costs tenths of a millisecond and waits for other work of the event loop, so that chunks are late
from some hundred streams on. Here, a thread outside of the interpreter (_chunk_sender.c) sends and stamps the chunks.
Python gives it a whole response, and is notified of its end.
"""

import asyncio
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

from asr_server.engine import Script

try:
    from asr_server import _chunk_sender
except ImportError:  # not compiled: see the extension in pyproject.toml
    _chunk_sender = None  # type: ignore[assignment]

compiled = _chunk_sender is not None


class ChunkSender:
    """One sending thread per process, which notifies the event loop that first uses it."""

    @cached_property
    def _thread(self) -> Any:
        thread = _chunk_sender.ChunkSender()
        asyncio.get_running_loop().add_reader(thread.fileno(), self._wake)
        return thread

    def _wake(self) -> None:
        for done in self._thread.finished():
            if not done.done():  # futures of disconnected clients were cancelled
                done.set_result(None)

    async def send(
        self,
        descriptor: int,
        *,
        head: bytes,
        opening: bytes,
        frame: tuple[bytes, bytes],
        texts: tuple[bytes, ...],
        script: Script,
        start: float,
        sent_at: list[float],
        encrypt: Callable[[bytes], bytes] | None,
    ) -> None:
        """Send `head`, then each text as an HTTP chunk when it is due, counted from `start` (seconds).

        A chunk contains a comment line with its stamp, and the text between the two parts of the frame; the first
        begins with `opening`. In any case, `sent_at` gets the stamp of each chunk whose sending began, in
        `time.perf_counter()` seconds: taken immediately before the system call, and never before it was due. Encrypted
        chunks are prepared in advance, and contain no stamp.

        Raises:
            OSError: the connection is broken or closed.
        """
        done = asyncio.get_running_loop().create_future()
        begin = int(start * 1e9) + 1  # rounded up, so that no chunk leaves too early
        before: bytes | None = frame[0]
        if encrypt is not None:
            payloads = [b"".join((frame[0], text, frame[1])) for text in texts]
            payloads[0] = opening + payloads[0]
            chunks = [b"%x\r\n%b\r\n" % (len(payload), payload) for payload in payloads]
            chunks[0] = head + chunks[0]
            texts, before = tuple(map(encrypt, chunks)), None
        stream = self._thread.send(descriptor, done, head, opening, before, texts, frame[1], script.offsets, begin)
        try:
            await done
        finally:
            stream.close()
            sent_at += stream.sent_at
        if stream.error:
            raise OSError(stream.error, os.strerror(stream.error))

    def close(self) -> None:
        """Stop the thread."""
        if "_thread" in self.__dict__:
            self._thread.close()

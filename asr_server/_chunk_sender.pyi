class Stream:
    sent_at: list[float]
    error: int
    def close(self) -> None: ...

class ChunkSender:
    def fileno(self) -> int: ...
    def send(
        self,
        descriptor: int,
        owner: object,
        head: bytes,
        opening: bytes,
        before: bytes | None,
        texts: tuple[bytes, ...],
        after: bytes,
        offsets: bytes,
        start: int,
        /,
    ) -> Stream:
        """Send an HTTP chunk per text, each when its offset (int64, ns, native order) has passed since `start` (ns).

        A chunk contains the line `: sent_at=SECONDS`, `before`, its text and `after`. `head` precedes the first chunk,
        and `opening` is its beginning. If `before` is None, the texts are ready to send. `finished` returns the owner
        when all chunks are sent or the socket fails. The socket is duplicated until the stream is closed.
        """
    def finished(self) -> list[object]: ...
    def close(self) -> None: ...

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
        """Send a chunk of HTTP per text, each when its offset (int64, ns, native order) has passed since `start` (ns).

        A chunk holds the line `: sent_at=SECONDS`, `before`, its text and `after`; the first is preceded by `head`, and
        `opening` is its beginning. Without `before`, a text is ready to be sent. `finished` gives the owner back when
        all have left or the socket failed. The socket is duplicated until the stream is closed.
        """
    def finished(self) -> list[object]: ...
    def close(self) -> None: ...

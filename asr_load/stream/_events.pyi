from collections.abc import Sequence

def find(
    body: bytes, start: int, stamps: Sequence[int], ends: Sequence[int], limit: int = ..., /
) -> tuple[bytes, list[int], bool, int] | None: ...

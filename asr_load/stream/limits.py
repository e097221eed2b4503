"""How much one answer may be, whoever reads it: no transcript comes near it, and no server can hold up the others.

_socket_reader.c has MAX_BYTES, MAX_WIRE_BYTES, MAX_READS and MAX_HEAD_BYTES too.
"""

from __future__ import annotations

MAX_HEAD_BYTES, MAX_INTERIM = 64 << 10, 100
"""Of a head, with what comes before it (1xx) and of the trailers behind a body; how many interim answers."""

MAX_STREAM_BYTES, MAX_EVENTS = 4 << 20, 100_000
"""Of a streamed body: its payload, comments included, and its events."""

MAX_EVENT_BYTES, MAX_EVENT_LINES = 1 << 20, 10_000
"""Of one event."""

MAX_BYTES = 16 << 20
"""Of a body that is not streamed."""

MAX_WIRE_BYTES, MAX_READS = 64 << 20, 100_000
"""Of an answer with its framing, which may be more than what it frames; and in how many reads it may come."""

MAX_LENGTH_DIGITS = 15
"""Of a Content-Length, and of a chunk's size: no body is as long."""

TURN_S = 0.005
"""For how long an answer is parsed before others have their turn."""

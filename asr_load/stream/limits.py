"""Limits of a response, for all readers: far above any transcript, so that no server can hold up other users.

_socket_reader.c repeats MAX_BYTES, MAX_WIRE_BYTES, MAX_READS and MAX_HEAD_BYTES.
"""

from __future__ import annotations

MAX_HEAD_BYTES, MAX_HEAD_LINES, MAX_INTERIM = 64 << 10, 102, 100
"""Maximum bytes of a head including interim responses (1xx), and of trailers; maximum lines of a head; maximum number
of interim responses."""

MAX_STREAM_BYTES, MAX_EVENTS = 4 << 20, 100_000
"""Maximum payload of a streamed body, including comments, and maximum number of its events."""

MAX_EVENT_BYTES, MAX_EVENT_LINES = 1 << 20, 1_000
"""Maximum bytes and lines of an event. sseclient-py copies the data so far for each line, hence few lines."""

MAX_BYTES = 16 << 20
"""Maximum bytes of a body that is not streamed."""

MAX_WIRE_BYTES, MAX_READS = 64 << 20, 100_000
"""Maximum bytes of a response including its framing, which may exceed the payload; and maximum number of reads."""

MAX_LENGTH_DIGITS = 15
"""Maximum digits of a Content-Length and of a chunk's size."""

TURN_S = 0.005
"""Seconds to parse before other greenlets have a turn."""

"""Sessions: one that was kept goes on where it can."""

from __future__ import annotations

from collections import deque

import pytest

from asr_load.http.failure import Failure
from asr_load.realtime.session import RealtimeSession
from asr_load.stream.reader import ProtocolError


class _Kept:
    """Stands in for a socket between two utterances."""

    def __init__(
        self, *messages: bytes, is_open: bool = True, has_more: bool = False, error: Exception | None = None
    ) -> None:
        self.messages = deque((message, 1) for message in messages)
        self.is_open, self.has_more, self._error = is_open, has_more, error

    def begin_utterance(self) -> None:
        pass

    def listen(self, _until: float) -> None:
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize(
    ("kept", "goes_on"),
    [
        (_Kept(), True),
        (_Kept(b'{"type":"transcription.done","text":"again"}', b'{"type":"rate_limits.updated"}'), True),
        (_Kept(b'{"type":"error","error":"idle"}'), False),
        (_Kept(b"{"), False),
        (_Kept(is_open=False), False),
        (_Kept(has_more=True), False),
        (_Kept(error=ProtocolError("a binary frame")), False),
        (_Kept(error=Failure("client", "no memory")), False),
    ],
)
def test_kept_session_continues_after_events_but_not_after_an_error(kept: _Kept, goes_on: bool) -> None:
    session = RealtimeSession(kept, "")  # type: ignore[arg-type]
    assert session.can_go_on() is goes_on
    assert not (goes_on and kept.messages)

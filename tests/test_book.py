"""When a fleet has come to rest, as its book knows it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr_load.audio.shard import Shards
from asr_load.load.book import SILENT_S, Book
from asr_load.load.fleet import expected
from records import record, worker_info
from test_e2e import clips
from test_options import settings

__all__ = ["clips"]  # a fixture


@pytest.fixture
def book(clips: Path, tmp_path: Path) -> Iterator[Book]:
    made = Book("id", settings(), Shards(clips), tmp_path, lambda: 0)
    yield made
    made.close()


def test_a_fleet_is_quiet_when_all_have_said_so_and_their_records_are_here(book: Book) -> None:
    book.hear(worker_info(worker=0, started=1, recorded=1))
    book.take([record(0)])
    moment = time.monotonic()
    assert not book.quiet_since(moment)  # that was before
    book.hear(worker_info(worker=0, started=2, recorded=1))
    assert not book.quiet_since(moment)  # one is in flight
    book.hear(worker_info(worker=0, started=2, recorded=2))
    assert not book.quiet_since(moment)  # its record is on its way
    book.take([record(1)])
    assert book.quiet_since(moment)


def test_nobody_waits_for_a_worker_that_is_lost_or_never_had_a_part(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.hear(worker_info(worker=0, started=1, recorded=0))
    moment = time.monotonic()
    book.hear(expected(1, "late"))
    book.hear(worker_info(worker=2))
    assert not book.quiet_since(moment)
    now = time.monotonic() + SILENT_S
    monkeypatch.setattr(time, "monotonic", lambda: now)
    book.hear(worker_info(worker=2))
    assert book.quiet_since(moment)

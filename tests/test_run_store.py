"""When a fleet has come to rest, as its store knows it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr_load.audio.shard import Shards
from asr_load.load.fleet import expected
from asr_load.load.run_store import SILENT_S, RunStore
from asr_load.load.target import Target, Targets
from asr_load.results.runfile import Invocation
from asr_load.stream.record import encode_record
from harness.options import settings
from harness.records import record, worker_info


@pytest.fixture
def store(clips: Path, tmp_path: Path) -> Iterator[RunStore]:
    targets = Targets({"SpeechUser": Target(settings(), Shards(clips))})
    made = RunStore("id", settings(), targets, folder=tmp_path, invocation=Invocation(), users=lambda: 0)
    yield made
    made.close()


def test_a_fleet_is_quiet_when_all_have_said_so_and_their_records_are_here(store: RunStore, clips: Path) -> None:
    now = time.time()
    ids = sorted(Shards(clips).ids())
    store.update_worker(worker_info(worker=0, started=1, recorded=1))
    store.add_records([encode_record(record(0, clip=ids[0], started_at=now))], worker_info())
    moment = time.monotonic()
    assert not store.quiet_since(moment)  # that was before
    store.update_worker(worker_info(worker=0, started=2, recorded=1))
    assert not store.quiet_since(moment)  # one is in flight
    store.update_worker(worker_info(worker=0, started=2, recorded=2))
    assert not store.quiet_since(moment)  # its record is on its way
    store.add_records(
        [encode_record(record(1, clip="of another set", started_at=now))], worker_info()
    )  # it has come, though it is refused
    assert store.quiet_since(moment)


def test_a_line_is_written_as_it_came(store: RunStore, clips: Path) -> None:
    sent = record(0, clip=min(Shards(clips).ids()), started_at=time.time())
    line = encode_record(sent).replace(b":", b": ", 1)  # none of our own encoder's
    store.add_records([line], worker_info())
    assert store.file.path.read_bytes() == line + b"\n"


def test_nobody_waits_for_a_worker_that_is_lost_or_never_had_a_part(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.update_worker(worker_info(worker=0, started=1, recorded=0))
    moment = time.monotonic()
    store.update_worker(expected(1, "late"))
    store.update_worker(worker_info(worker=2))
    assert not store.quiet_since(moment)
    now = time.monotonic() + SILENT_S
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store.update_worker(worker_info(worker=2))
    assert store.quiet_since(moment)

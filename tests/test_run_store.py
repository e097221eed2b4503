"""The run store: when the fleet is idle, and the records that it writes."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr_load.audio.shard import Shards
from asr_load.load.master import expected
from asr_load.load.run_store import OVERDUE_S, RunStore
from asr_load.load.target import Target, Targets
from asr_load.results.record_file import RECORDS, RecordFile, read_records
from asr_load.results.runfile import Invocation
from asr_load.results.summary import summarise_folder
from asr_load.stream.record import encode_record
from harness.options import settings
from harness.records import record, run_folder, run_info, worker_info


@pytest.fixture
def store(clips: Path, tmp_path: Path) -> Iterator[RunStore]:
    targets = Targets({"SpeechUser": Target(settings(), Shards(clips))})
    made = RunStore("id", settings(), targets, folder=tmp_path, invocation=Invocation(), users=lambda: 0)
    yield made
    made.close()


def test_fleet_is_quiet_when_all_reported_and_all_records_arrived(store: RunStore, clips: Path) -> None:
    now = time.time()
    ids = sorted(Shards(clips).ids())
    store.update_worker(worker_info(worker=0, started=1, recorded=1))
    store.add_records([encode_record(record(0, clip=ids[0], started_at=now))], worker_info())
    moment = time.monotonic()
    assert not store.quiet_since(moment)  # its report is older than that
    store.update_worker(worker_info(worker=0, started=2, recorded=1))
    assert not store.quiet_since(moment)  # one request is in flight
    store.update_worker(worker_info(worker=0, started=2, recorded=2))
    assert not store.quiet_since(moment)  # its record has not arrived
    store.add_records(
        [encode_record(record(1, clip="of another set", started_at=now))], worker_info()
    )  # it has arrived, though it is rejected
    assert store.quiet_since(moment)


def test_record_line_is_written_unchanged(store: RunStore, clips: Path) -> None:
    sent = record(0, clip=min(Shards(clips).ids()), started_at=time.time())
    line = encode_record(sent).replace(b":", b": ", 1)  # different from what our encoder writes
    store.add_records([line], worker_info())
    assert store.file.path.read_bytes() == line + b"\n"


def test_lost_or_late_worker_is_not_waited_for(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.update_worker(worker_info(worker=0, started=1, recorded=0))
    moment = time.monotonic()
    store.update_worker(expected(1, "late"))
    store.update_worker(worker_info(worker=2))
    assert not store.quiet_since(moment)
    now = time.monotonic() + OVERDUE_S
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store.update_worker(worker_info(worker=2))
    assert store.quiet_since(moment)


def test_records_read_from_a_lost_workers_file_are_appended(store: RunStore, clips: Path, tmp_path: Path) -> None:
    sent = [record(n, clip=min(Shards(clips).ids()), worker=1, started_at=time.time()) for n in range(3)]
    kept = RecordFile(tmp_path / "worker-001.jsonl")
    for each in sent:
        kept.write(each)
    kept.close()
    store.update_worker(worker_info(worker=1, host="there", started=4, recorded=1, ended=False))
    store.add_records([encode_record(sent[0])], worker_info(worker=1))
    store.mark_lost(1)
    summary = store.close()
    assert summary.requests.total == 3
    assert [each.seq for each in read_records(tmp_path)] == [0, 1, 2]
    assert len((tmp_path / RECORDS).read_bytes().splitlines()) == 3
    for again in (summary, summarise_folder(tmp_path)):
        assert any("lost 0 s after the start: the master read 2 records from" in why for why in again.validity.reasons)


def test_report_of_a_running_test_appends_no_records(tmp_path: Path) -> None:
    run_folder(tmp_path, [record(0)], run_info(ended=False, workers=[worker_info(ended=False)]))
    with (tmp_path / RECORDS).open("ab") as file:
        file.write(b'{"clip": "half')
    before = (tmp_path / RECORDS).read_bytes()
    (tmp_path / "worker-000.jsonl").write_bytes(b"".join(encode_record(record(n)) + b"\n" for n in range(2)))
    with (tmp_path / RECORDS).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as the process of the test does
        assert summarise_folder(tmp_path).requests.total == 2
        assert (tmp_path / RECORDS).read_bytes() == before
    assert summarise_folder(tmp_path).requests.total == 2
    assert (tmp_path / RECORDS).read_bytes() == (tmp_path / "worker-000.jsonl").read_bytes()

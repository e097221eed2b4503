"""Records that a master receives: implausible ones are rejected and counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asr_load.errors import InputError
from asr_load.load.record_check import Numbers, RecordCheck
from asr_load.load.worker import own_folder
from asr_load.results.record_file import read_records
from asr_load.results.runfile import Late, Refused, RunInfo, WorkerInfo, absurd, write_run
from asr_load.stream.record import RealtimeRecord, decode_record, encode_record
from harness.records import failure, health, record, run_info, worker_info

REALTIME = {"api": "realtime", "send_lag": {"p50": 0.0, "p99": 0.001, "max": 0.002}, "events": {"session.created": 1}}


def line_of(changes: dict[str, Any]) -> bytes:
    values = msgspec.to_builtins(record()) | (
        REALTIME if changes.keys() & set(RealtimeRecord.__struct_fields__) else {}
    )
    return json.dumps(values | changes, separators=(",", ":")).replace("NaN", "1e999").encode()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"due_at": 1000.0, "lag": -0.001},
        {"upload": None, "headers": None},
        {"session": "sess_1", "partial_lag": [-0.1], "close_code": 1006, "ttfs": 0.3},
        {"seq": -5, "retry_of": 3, "text": "\x1b[31m", "clip": "a\nb"},
    ],
)
def test_plausible_record_is_read(changes: dict[str, Any]) -> None:
    assert msgspec.to_builtins(decode_record(line_of(changes))).items() >= changes.items()


FIELDS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("upload", "headers", "ttft", "e2el", "stream_end"), (-0.001, 1e308, math.nan, "1", True)),
    **dict.fromkeys(("audio_s", "retry_s", "connect", "ttft_text"), (-1.0, 1e308)),
    **dict.fromkeys(("setup", "ttfs", "done_latency", "rtf_live", "backpressure", "backlog"), (-0.001, 1e308)),
    **dict.fromkeys(("started_at", "due_at", "ended_at"), (-1e18, 1e300, math.nan)),
    **dict.fromkeys(("chunks", "user", "worker", "retries", "packets", "revised"), (-1, 1 << 40, 0.5, True)),
    **dict.fromkeys(("output_tokens", "prompt_tokens", "cached_tokens"), (-1, 1 << 40, True)),
    **dict.fromkeys(("seq", "retry_of"), (1 << 63, 0.5)),
    **dict.fromkeys(("outcome", "error", "first_error", "cause", "finish_reason"), ("a\x1b[31m", "a\u202e", 1)),
    **dict.fromkeys(("user_class", "replica", "text_format", "output_tokens_source"), ("a\x1b[31m", "x" * 5000)),
    **dict.fromkeys(("dialect", "session"), ("a\x1b[31m", "x" * 5000)),
    **dict.fromkeys(("clip", "text", "reference", "raw_text"), (1, [])),
    **dict.fromkeys(("warmup", "ok", "streamed"), (1, "yes", None)),
    "itl": ([0.3, -0.1], [0.1, 1e308], [True]),
    "lag": (1e308, "1"),
    "http_status": (-200, 1 << 40),
    "api": (),  # a line with another api is no session, so these fields are not checked
    "send_lag": ({}, {"p50": 0.0, "p99": -0.1, "max": 0.0}, {"p50": 0.0, "p99": 1e308, "max": 0.0}, 1),
    "close_code": (-1, 1 << 20),
    "events": ({"a\x1b[31m": 1}, {"a": -1}, {"a": True}, {"x" * 5000: 1}),
    "partial_lag": ([1e308], [math.nan]),
}


@pytest.mark.parametrize("name", RealtimeRecord.__struct_fields__)
def test_each_field_of_a_record_is_checked(name: str) -> None:
    """Once, a `send_lag: {}` or `ttfs: 1e308` from one worker cost the whole fleet its summary."""
    for value in FIELDS[name]:
        with pytest.raises(ValueError, match=rf"its {name} |it is malformed"):
            decode_record(line_of(REALTIME | {name: value}))


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("not in order", {"upload": 0.3}),
        ("not in order", {"headers": 0.3}),
        ("not in order", {"ttft": 0.5}),
        ("not in order", {"ended_at": 999.0}),
        ("without latencies or audio", {"audio_s": 0.0}),
        ("without latencies or audio", {"audio_s": 1e-308}),
        ("without latencies or audio", {"ttft": None}),
        ("do not add up", {"e2el": 0.402}),
        ("contradicts", {"ok": False}),
        ("contradicts", {"outcome": "cut"}),
        ("is malformed", {"other": [[[]]]}),
    ],
)
def test_record_with_contradicting_fields_is_rejected(said: str, changes: dict[str, Any]) -> None:
    line = line_of(changes).replace(b"[[[]]]", b"[" * 100_000)
    with pytest.raises(ValueError, match=said):
        decode_record(line)


def test_record_is_accepted_once_from_its_worker_with_a_known_clip_and_time() -> None:
    border, own = RecordCheck({"clip0", "clip1"}, 1000.0), worker_info()
    assert border.read(encode_record(record(0)), own, 1001.0)
    assert border.read(encode_record(failure(-1, "client", clip="", started_at=1000.5, audio_s=0.0)), own, 1001.0)
    for wrong in (
        record(0),
        record(1, worker=1),
        record(2),
        record(1, started_at=994.0),
        record(1, started_at=1007.0),
        record(1, connect=-1.0),
    ):
        assert not border.read(encode_record(wrong), own, 1001.0)
    assert not border.read(b'{"clip": 1}', own, 1001.0)
    assert not border.read(b"\xff", own, 1001.0)
    # A line is written as received: unknown fields and line breaks would end up in the file.
    assert not border.read(encode_record(record(1)).replace(b"{", b'{"more":1,', 1), own, 1001.0)
    assert not border.read(encode_record(record(1)).replace(b"{", b"{\n", 1), own, 1001.0)
    assert border.read(encode_record(record(1)), own, 1001.0)
    reasons = [
        "began outside of the test",
        "belongs to another worker",
        "is a duplicate",
        "its connect is invalid: Expected `float` >= 0.0",
    ]
    reasons += ["not in the data", "it is malformed", "its clip is invalid"]
    assert sum(each.count for each in border.refused) == 10
    assert all(any(reason in each.reason for each in border.refused) for reason in reasons)
    # A difference of clocks that is known is no reason to reject.
    ahead = worker_info(worker=3, master_offset_s=-3600.0)
    assert border.read(encode_record(record(1, worker=3, started_at=4600.5)), ahead, 1001.0)


def test_each_number_is_added_once() -> None:
    numbers = Numbers()
    for number in (0, 1, -1, 10**15, 5):
        assert numbers.add(number)
        assert not numbers.add(number)


@pytest.mark.parametrize(
    "changes",
    [
        {"connecting_s": math.inf},
        {"users": -1},
        {"health": health(cpu_mean=math.nan)},
        {"late": -3},
        {"host": "a\x1b[31m"},
        {"master_offset_s": 1e300},
        {"health": health(late=[Late(1.0, 2.0, math.nan, 0.1)])},
        {"health": health(late=[Late(1.0, 2.0, -1.0, 0.1)])},
        {"health": health(late=[Late(2.0, 1.0, 0.1, 0.1)])},
        {"health": health(late=[Late(1.0, 2.0, 0.1, 0.1)] * 1001)},
    ],
)
def test_implausible_worker_info_is_rejected(changes: dict[str, Any]) -> None:
    def why(**changes: Any) -> str:
        try:  # as from msgpack, which can contain NaN
            return absurd(msgspec.convert(msgspec.to_builtins(worker_info(**changes)), WorkerInfo))
        except msgspec.ValidationError as error:
            return str(error)

    assert why(**changes)
    assert not why(reader_nice=-15, master_offset_s=-3600.0)


def test_rejected_records_are_counted_and_excluded(tmp_path: Path) -> None:
    from asr_load.results.summary import summarise, summarise_folder

    info = run_info(refused=[Refused(0, "its times are not in order", 3)])
    found = summarise([record(n) for n in range(5)], info)
    assert found.refused == 3
    assert "refused 3 records of worker 0: its times are not in order" in found.validity.reasons
    assert found.requests.total == 5
    # Records in a worker's own file have not been checked by the master.
    (tmp_path / "records.jsonl").write_bytes(encode_record(record(0)) + b"\n")
    own = [record(1), record(2, headers=0.3), record(3, worker=1)]
    (tmp_path / "worker-000.jsonl").write_bytes(b"".join(encode_record(one) + b"\n" for one in own))
    assert [one.seq for one in read_records(tmp_path)] == [0, 1]
    # Rejected records in it are counted, and those that the master already counted are counted once.
    write_run(tmp_path, run_info(refused=[Refused(0, "its times are not in order", 1)]))
    found = summarise_folder(tmp_path)
    assert (found.refused, found.requests.total) == (2, 2)


def test_worker_writes_only_below_its_own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own, elsewhere = Path("results"), tmp_path / "elsewhere"
    assert own_folder("results/20260101-000000", own, "id") == Path("results/20260101-000000")
    assert own_folder(str(elsewhere / "run"), elsewhere / "run", "id") == elsewhere / "run"
    assert own_folder(str(elsewhere / "run-2"), elsewhere / "run", "id") == elsewhere / "run-2"
    for asked in (
        "/etc/cron.d",
        "../elsewhere",
        str(elsewhere),
        "results/../../elsewhere",
        str(tmp_path / "results-x"),
    ):
        assert own_folder(asked, own, "id").parent == own
    for asked in ("/", "/tmp/a\x1bb", "/tmp/.ssh"):
        with pytest.raises(InputError, match="the master sent an invalid results folder"):
            own_folder(asked, own, "id")
    # A link that leads out of the folder is not followed.
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "link").symlink_to(elsewhere)
    assert own_folder("results/link/run", own, "id") == own / "run"
    # A folder on the master's own machine that contains this run is used.
    elsewhere.mkdir()
    write_run(elsewhere, run_info(id="id"))
    assert own_folder(str(elsewhere), own, "id") == elsewhere
    assert own_folder(str(elsewhere), own, "another").parent == own
    assert isinstance(run_info(), RunInfo)

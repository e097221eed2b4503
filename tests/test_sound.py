"""Which requests a run's metrics include if the load generator was late for some seconds."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from asr_load.report.comparison import comparison_view
from asr_load.report.exports import export
from asr_load.report.headline import tiles, words
from asr_load.report.main import main
from asr_load.report.page import make_report
from asr_load.report.view import view_finished
from asr_load.results.record_file import RECORDS
from asr_load.results.runfile import Late, RunInfo, read_run, write_run
from asr_load.results.sound import LeftOut, measured, trim
from asr_load.results.summary import Finished, read_finished, summarise
from asr_load.stream.record import RealtimeRecord, Record
from harness.records import failure, health, record, run_folder, run_info, worker_info

HICCUP = {"loop_lag_p99": 0.3, "loop_lag_max": 0.4, "sound_loop_lag_p99": 0.002}
"""Health of a load generator whose lateness dominates the p99 of the whole test."""


def late(*begins: float, seconds: float = 1.0, cpu: float = 0.2) -> list[Late]:
    return [Late(begin, begin + seconds, 0.4, cpu) for begin in begins]


def client(stretches: list[Late] | None, **changes: Any) -> Any:
    return worker_info(ended_at=1100.0, health=health(**HICCUP, late=stretches), **changes)


def info_of(stretches: list[Late] | None, **changes: Any) -> RunInfo:
    return run_info(**{"workers": [client(stretches)]} | changes)


def steady(count: int = 100) -> list[Record]:
    """One request per second that takes 0.4 s. The load generator adds 0.3 s in seconds 50 and 51, and one fails."""
    records = [record(n, clip=f"clip{n % 20}") for n in range(count)]
    for n in (50, 51):
        records[n] = record(n, clip=f"clip{n % 20}", ttft=0.5, headers=None, e2el=0.7, stream_end=0.71)
    records[52] = failure(52, "stalled", ended_at=1052.5)
    return records


def test_requests_with_a_stamp_in_a_late_second_are_excluded() -> None:
    records, info = steady(), info_of(late(1050.0, seconds=3.0), slos=["ttft:max:300", "errors:rate:0"])
    summary = summarise(records, info)
    assert (summary.validity.verdict, summary.validity.client) == ("valid", "healthy")
    assert summary.validity.sound == pytest.approx(0.97, abs=0.001)
    assert summary.validity.reasons == [
        "97.0% of the test is sound: 3 of 100 requests had a time stamp in the 3 s in which the load generator was"
        " late (by up to 400 ms); latencies, error rates and WER exclude them"
    ]
    assert summary.left_out.late == 3
    assert (summary.ttft.n, summary.ttft.max) == (97, 0.2)
    assert (summary.error_rate, summary.passed) == (0.0, True)
    # Counts include them, as throughput does.
    assert summary.requests.by_outcome == {"ok": 99, "stalled": 1}
    assert summary.requests_per_s == pytest.approx(99 / summary.wall_s)


def test_run_without_recorded_late_seconds_is_judged_by_its_p99() -> None:
    summary = summarise(steady(), info_of(None))
    assert (summary.validity.verdict, summary.left_out.late, summary.validity.sound) == ("client-bound", 0, None)
    assert summary.validity.reasons[0] == "the event loop was 300.0 ms late at p99 (limit 10 ms)"
    assert summary.ttft.n == 99


def test_too_few_sound_seconds_make_the_run_client_bound() -> None:
    summary = summarise(steady(), info_of(late(*range(1000, 1100, 4))))
    assert (summary.validity.verdict, summary.left_out.late, summary.ttft.n) == ("client-bound", 0, 99)
    assert summary.validity.reasons[0].startswith("the load generator was late in 25% of the test (limit 20%): ")
    # Streams of 40 s have a stamp nearly everywhere: half of them have to be left.
    long = [record(n, itl=[1.0] * 40, e2el=40.2, stream_end=40.3) for n in range(100)]
    few = summarise(long, info_of(late(*range(1005, 1130, 6))))
    assert (few.validity.sound or 0) > 0.8
    assert (few.validity.verdict, few.left_out.late) == ("client-bound", 0)
    assert re.match(r"only \d+ of 100 requests lie outside of late seconds \(limit 50%\): ", few.validity.reasons[0])


def test_late_seconds_without_a_stamp_exclude_no_request() -> None:
    """A request waits from 1000.2 to 1019.8. The second late stretch is after the test."""
    waits = [record(0, itl=[19.6], chunks=2, e2el=19.8, stream_end=19.9)]
    (reason,) = summarise(waits, info_of(late(1015.0, 1030.0))).validity.reasons
    assert reason == (
        "95.0% of the test is sound: no request had a time stamp in the 1 s in which the load generator was"
        " late (by up to 400 ms)"
    )


def test_one_late_second_of_a_short_test_is_judged_by_its_p99() -> None:
    records = [record(n) for n in range(4)]
    calm = worker_info(health=health(late=late(1001.0)))
    assert summarise(records, run_info(workers=[calm])).validity.verdict == "valid"
    assert summarise(records, info_of(late(1001.0))).validity.verdict == "client-bound"


@pytest.mark.parametrize(
    ("changes", "excluded"),
    [
        ({"started_at": 1049.5}, False),  # it ends at 1049.91
        ({"started_at": 1049.7}, True),  # its second chunk comes at 1050.0
        ({"started_at": 1051.0}, False),
        ({"started_at": 1051.2, "due_at": 1050.9, "lag": 0.3}, True),
        ({"started_at": 1051.2, "connect": 0.5}, True),
        ({"started_at": 1049.0, "ttft": 3.0, "headers": 3.0, "e2el": 3.2, "stream_end": 3.21}, False),  # it only waits
        ({"started_at": 1049.0, "ttft": 3.0, "headers": 1.5, "e2el": 3.2, "stream_end": 3.21}, True),
        ({"started_at": 1049.0, "ttft": 9.0, "headers": None, "e2el": 9.2, "stream_end": 9.21, "upload": 1.9}, True),
    ],
)
def test_request_is_excluded_by_its_stamps_and_not_its_latency(changes: dict[str, Any], excluded: bool) -> None:
    one = record(200, **changes)
    part = measured([*steady(), one], info_of(late(1050.0)))
    assert (one not in part.sound) is excluded


def test_live_session_is_excluded_as_it_sends_all_the_time() -> None:
    values = msgspec.structs.asdict(record(0, started_at=1040.0, ttft=15.0, headers=None, e2el=15.2, stream_end=15.3))
    part = measured([*steady(), RealtimeRecord(**values)], info_of(late(1050.0)))
    assert not any(isinstance(one, RealtimeRecord) for one in part.sound)


def test_late_seconds_apply_to_their_worker_on_its_clock() -> None:
    """Worker 1's clock is 3,600 s behind the master's. Only its own requests are excluded."""
    records = [record(n, worker=n % 2, started_at=1000.0 + n - 3600 * (n % 2)) for n in range(100)]
    workers = [
        client([]),
        client(late(1050.0 - 3600, seconds=2.0), worker=1, master_offset_s=3600.0),
    ]
    summary = summarise(records, run_info(workers=workers))
    assert (summary.left_out.late, summary.ttft.n) == (1, 99)
    assert summary.validity.sound == pytest.approx(0.99, abs=0.001)


def test_one_worker_that_is_always_late_makes_the_run_client_bound() -> None:
    records = [record(n, worker=n % 10) for n in range(100)]
    workers = [client(late(1000.0, seconds=200.0) if n == 3 else [], worker=n) for n in range(10)]
    summary = summarise(records, run_info(workers=workers))
    assert (summary.validity.verdict, summary.left_out.late) == ("client-bound", 0)
    assert summary.validity.reasons[0].startswith(
        "the load generator was late in 100% of the seconds of worker 3 (limit 20%): 10 "
    )


def ramp(random: np.random.Generator, at: list[float]) -> tuple[list[Record], RunInfo]:
    """An open loop whose rate rises from 5 to 50 per second within 100 s."""
    starts = 1000 + 100 * np.sqrt(np.sort(random.uniform(0.01, 1, 2500)))
    records = [
        record(n, started_at=start, ttft=0.4, headers=None, e2el=0.6, stream_end=0.61)
        for n, start in enumerate(starts.tolist())
    ]
    return records, info_of(late(*at))


def test_lateness_that_grows_with_the_load_is_not_excluded() -> None:
    for seed in range(20):
        part = measured(*ramp(np.random.default_rng(seed), list(range(1076, 1100, 3))))
        assert part.why_bound.startswith("the load generator was late when its load was high: ")
        assert (part.left.late, len(part.sound)) == (0, 2500)


@pytest.mark.long
def test_lateness_unrelated_to_the_load_is_excluded() -> None:
    bound = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        at = sorted(random.choice(np.arange(1012, 1100, 3), 8, replace=False).tolist())
        bound += bool(measured(*ramp(random, at)).why_bound)
    assert bound <= 6


def test_busy_core_in_late_seconds_makes_the_run_client_bound() -> None:
    records, busy = steady(), info_of(late(1050.0, 1060.0, 1070.0, 1080.0, 1090.0, cpu=0.97))
    assert (
        "the load generator used 97% of its core in the 5 s in which it was late"
        in summarise(records, busy).validity.reasons
    )
    assert summarise(records, busy).validity.verdict == "client-bound"
    assert (
        summarise(records, info_of(late(1050.0, cpu=0.97))).validity.verdict == "valid"
    )  # a single garbage collection


def test_late_open_loop_requests_are_judged_in_sound_seconds() -> None:
    records = [record(n, due_at=1000.0 + n, lag=0.3 if n in (50, 51) else 0.0) for n in range(100)]
    records = [msgspec.structs.replace(one, started_at=1000.0 + one.seq + (one.lag or 0.0)) for one in records]
    noted = [client(late(1050.0, seconds=2.0), started=100, late=2)]
    assert summarise(records, run_info(workers=noted)).validity.verdict == "valid"
    assert summarise(records, run_info(workers=[client([], started=100, late=20)])).validity.verdict == "client-bound"


def test_requests_that_waited_for_a_user_are_not_counted_as_late() -> None:
    records = [record(n, due_at=1000.0 + n, lag=0.5) for n in range(100)]
    records = [msgspec.structs.replace(one, started_at=1000.5 + one.seq) for one in records]
    noted = [client(late(1050.0, seconds=5.0), started=100, late=8, queued=92)]
    assert "8 of 95 requests went out more than 10 ms late although a user was free" in " ".join(
        summarise(records, run_info(workers=noted)).validity.reasons
    )


def test_goodput_is_not_lowered_by_excluded_requests() -> None:
    summary = summarise(steady(), info_of(late(1050.0, seconds=3.0), goodput="ttft:300"))
    assert summary.goodput == pytest.approx(100 / summary.wall_s)
    assert summarise(steady(), info_of(None, goodput="ttft:300")).goodput == pytest.approx(97 / summary.wall_s)


def test_report_command_reproduces_the_summary_from_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = info_of(late(1050.0, seconds=3.0))
    folder = run_folder(tmp_path / "run", steady(), info)
    assert read_finished(folder).summary == summarise(steady(), info)
    monkeypatch.setattr("sys.argv", ["report.py", str(folder), "--export", "csv"])
    assert main() == 0
    out = capsys.readouterr().out
    assert "3 because the load generator was late" in out
    assert "Figures: valid\n  - 97.0% of the test is sound" in out
    written = json.loads((folder / "summary.json").read_text())
    assert (written["left_out"]["late"], written["ttft"]["n"], written["requests"]["total"]) == (3, 97, 100)
    rows = list(csv.DictReader(io.StringIO((folder / "records.csv").read_text())))
    assert [row["seq"] for row in rows if row["counted"] == "False"] == ["50", "51", "52"]
    assert len((folder / RECORDS).read_text().splitlines()) == 100
    assert "97.0% of the test is sound" in (folder / "report.html").read_text()


def test_run_file_of_an_earlier_version_has_no_late_seconds(tmp_path: Path) -> None:
    write_run(tmp_path, run_info())
    old = json.loads((tmp_path / "run.json").read_text())
    for name in ("late", "sound_loop_lag_p99", "sound_stamp_lag_p99"):
        del old["workers"][0]["health"][name]
    (tmp_path / "run.json").write_text(json.dumps(old))
    found = read_run(tmp_path)
    assert found.workers[0].health is not None
    assert found.workers[0].health.late is None


def test_comparison_excludes_the_same_requests() -> None:
    info = info_of(late(1050.0, seconds=3.0))
    run = Finished(info, steady())
    figures = {one.name: one for one in comparison_view([run], [run]).figures}
    assert figures["ttft_p99"].value == pytest.approx(200)
    assert figures["error_rate"].value == 0
    assert figures["requests_per_s"].value == pytest.approx(99 / run.summary.wall_s)
    assert not any("too slow" in warning for warning in comparison_view([run], [run]).comparison.warnings)


def test_exports_mark_the_measured_records(tmp_path: Path) -> None:
    records = steady()
    records[0].warmup = True
    info = info_of(late(1050.0, seconds=3.0), trim_end=1.0)
    finished = Finished(info, records)
    rows = list(csv.DictReader(io.StringIO(export(tmp_path, finished, "csv").read_text())))
    assert [row["seq"] for row in rows if row["counted"] == "False"] == ["0", "50", "51", "52", "99"]


def test_report_tables_exclude_late_requests() -> None:
    info = info_of(late(1050.0, seconds=3.0))
    page = make_report(Finished(info, steady()))
    assert "700.0" not in page[page.index("<h2>Tables</h2>") : page.index("Options and versions")]
    assert "load generator late" in page


def test_headline_error_rate_excludes_late_requests() -> None:
    """Ten of a hundred requests fail, all in late seconds."""
    failed = [failure(n, "stalled", ended_at=1000.5 + n) for n in range(50, 60)]
    records = [*(record(n) for n in range(50)), *failed, *(record(n) for n in range(60, 100))]
    summary = summarise(records, info_of(late(1050.0, seconds=10.0), slos=["errors:rate:0.01"]))
    view = view_finished(summary)
    (server,) = (word for word in words(view) if word.name == "Server")
    assert (server.text, server.look) == ("SLOs 1 of 1 met, errors 0.0%, WER 0.0%", "good")
    (tile,) = (tile for tile in tiles(view) if tile.name == "Errors")
    assert (tile.value, tile.more, tile.look) == ("0.0%", "limit 1.0%", "good")


def test_failures_in_late_seconds_are_not_an_outage() -> None:
    failed = [failure(n, "stalled", ended_at=1000.5 + n) for n in range(50, 62)]
    records = [*(record(n) for n in range(50)), *failed, *(record(n) for n in range(62, 100))]
    summary = summarise(records, info_of(late(1050.0, seconds=12.0)))
    assert (summary.validity.verdict, summary.steadiness.verdict) == ("valid", "steady")
    assert summarise(records, info_of([])).steadiness.verdict == "interrupted"


def test_excluded_successes_do_not_make_an_outage() -> None:
    """Each response takes 3 s, so that only excluded ones end within ten seconds. Other requests fail at once."""
    slow = [record(n, itl=[1.4, 1.4], e2el=3.0, stream_end=3.0) for n in range(60)]
    failed = [failure(100 + n, "http_500", started_at=1020 + n / 4, ended_at=1020.1 + n / 4) for n in range(40)]
    summary = summarise([*slow, *failed], info_of(late(1022.0, seconds=7.0)))
    assert summary.left_out.late > 0
    assert (summary.validity.verdict, summary.steadiness.verdict) == ("valid", "unclear")


def test_charts_mark_late_seconds_of_the_measured_time() -> None:
    """A late second of the thirty warm-up requests is not marked in the test of seventy."""
    records = [record(n, warmup=n < 30) for n in range(100)]
    info = info_of(late(1005.0, 1050.0, 1200.0))
    page = make_report(Finished(info, records))
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page)
    assert found is not None
    assert json.loads(found[1])["course"]["places"] == [{"name": "load generator late", "at": 51.0}]


def test_trim_excludes_warm_up_and_both_ends() -> None:
    records = [record(n, started_at=100.0 + n, warmup=n < 2) for n in range(12)]
    kept, left = trim(records, 0, 0)
    assert ([item.seq for item in kept], left) == (list(range(2, 12)), LeftOut(2, 0, 0))
    kept, left = trim(records, 3, 2)
    assert ([item.seq for item in kept], left) == ([5, 6, 7, 8, 9], LeftOut(2, 3, 2))
    kept, left = trim(records, 6, 6)
    assert (kept, left.trim_start + left.trim_end) == ([], 10)
    assert trim([], 1, 1) == ([], LeftOut())
    due = [record(n, started_at=500.0, due_at=100.0 + n, lag=0.0) for n in range(4)]
    assert [item.seq for item in trim(due, 1, 1)[0]] == [1, 2]

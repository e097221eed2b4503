"""Open-loop load, warm-up and SLOs, with real processes."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from asr_load.schedule.arrivals import arrivals_of
from asr_load.schedule.loop import Loop
from harness.checks import error_of
from harness.fleets import SLOW, Fleet, end, info, processes
from harness.runs import FAST, POST, Run, run
from harness.serving import running_streams, serve, wait_until

ONE_SLOT = ("--engine", "scripted", "--tokens", "5", "--ttft-ms", "50", "--itl-ms", "50", "--slots", "1")
"""Each request takes 0.25 s, one after the other: four per second."""


def by_due(done: Run) -> list[dict[str, Any]]:
    return sorted(done.records, key=lambda record: record["due_at"])


@pytest.mark.long
@pytest.mark.parametrize("workers", [[], ["2"]])
def test_open_loop_sends_each_request_when_due_across_the_fleet(
    clips: Path, tmp_path: Path, workers: list[str]
) -> None:
    fleet = processes(int(workers[0])) if workers else []
    words = ("-u", "20", "--request-rate", "25", "--requests", "60", "--seed", "5", *fleet)
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", *words)
    assert done.code == 0, done.err
    # Each number occurs once, in turn over the workers, exactly when the seeded process says. Sort by number, not by
    # time: two requests due within the error of the workers' clocks may be swapped.
    records = sorted(done.records, key=lambda record: record["seq"])
    assert [record["seq"] for record in records] == list(range(60))
    assert [record["worker"] for record in records] == [n % 2 if workers else 0 for n in range(60)]
    arrivals = arrivals_of(Loop(rate=25.0, seed=5))
    assert arrivals is not None
    due = [arrivals.due(n) or 0.0 for n in range(60)]
    wanted = [later - earlier for earlier, later in pairwise(due)]
    got = [later["due_at"] - earlier["due_at"] for earlier, later in pairwise(records)]
    # Workers of one machine share its clock: their offsets differ only by the error of the estimate.
    error = max((worker["master_offset_error_s"] for worker in info(done)["workers"]), default=0.0)
    assert got == pytest.approx(wanted, abs=2 * error + 1e-5)
    for record in records:
        assert record["lag"] == pytest.approx(record["started_at"] - record["due_at"], abs=1e-6)
        assert record["lag"] >= -1e-6
    summary = done.summary
    assert summary["lag"]["n"] == summary["ttft_due"]["n"] == summary["e2el_due"]["n"] == 60
    assert summary["ttft_due"]["mean"] == pytest.approx(summary["ttft"]["mean"] + summary["lag"]["mean"], abs=1e-6)
    assert "TTFT from due" in done.out
    assert info(done)["loop"]["rate"] == 25.0
    # All 60 requests were due when the last one was. The interval shows what other seeds may give.
    loop = summary["open_loop"]
    assert loop["asked"] == pytest.approx(25)
    assert loop["due"] == loop["sent"] == pytest.approx(60 / due[-1])
    assert loop["low"] == pytest.approx(25 - 1.96 * math.sqrt(25 / due[-1]))
    assert f"Open loop: 25.00 requests/s requested, {loop['due']:.2f} due" in done.out


@pytest.mark.long
def test_slow_servers_queue_shows_in_an_open_loop_but_not_in_a_closed_one(clips: Path, tmp_path: Path) -> None:
    with serve(*ONE_SLOT) as host:
        closed = run(host, clips, tmp_path / "closed", "-u", "1", "--requests", "16")
        opened = run(
            host,
            clips,
            tmp_path / "open",
            "-u",
            "50",
            "--request-rate",
            "8",
            "--arrivals",
            "constant",
            "--requests",
            "16",
        )
    assert closed.summary["lag"]["n"] == 0
    # Eight per second arrive and four are served: the 16th is due after 1.9 s and done after 4 s at the earliest.
    assert opened.summary["e2el"]["max"] >= 2.0
    assert closed.summary["e2el"]["max"] < opened.summary["e2el"]["max"]  # 0.25 s each in the closed loop
    assert opened.summary["e2el_due"]["max"] >= opened.summary["e2el"]["max"]
    assert info(opened)["workers"][0]["queued"] == 0


@pytest.mark.long
def test_latency_from_due_includes_the_wait_for_a_user(clips: Path, tmp_path: Path) -> None:
    words = ("-u", "1", "--request-rate", "8", "--arrivals", "constant", "-t", "4", "--stop-timeout", "10")
    with serve(*ONE_SLOT) as host:
        done = run(host, clips, tmp_path / "r", *words)
    records = by_due(done)
    assert [record["seq"] for record in records] == list(range(len(records)))
    assert len(records) < 20  # one at a time
    assert done.summary["e2el_due"]["max"] >= 1.5
    assert done.summary["e2el"]["max"] < done.summary["e2el_due"]["max"]  # 0.25 s each, from when it is sent
    worker = info(done)["workers"][0]
    assert worker["queued"] >= len(records) - 2
    assert worker["unsent"] >= 10  # of the 32 or more that were due in 4 s
    assert done.summary["validity"]["verdict"] != "valid"
    said = " ".join(done.summary["validity"]["reasons"])
    assert "fell due before a user was free" in said
    assert f"{worker['unsent']} more requests fell due before the end of the test" in said


@pytest.mark.long
def test_arrivals_are_redistributed_when_a_worker_joins_or_dies(clips: Path, tmp_path: Path) -> None:
    words = (
        "--data",
        clips,
        "-u",
        "12",
        "-t",
        "24",
        "--stop-timeout",
        "5",
        "--request-rate",
        "20",
        "--arrivals",
        "constant",
    )
    with serve(*FAST) as host:
        fleet = Fleet(host, tmp_path / "r", *words, "--expect-workers", "1")
        workers = [fleet.worker()]
        try:
            wait_until(lambda: fleet.lines() > 30, "the first worker's records")
            workers.append(fleet.worker())
            wait_until(lambda: '"worker":1,' in (tmp_path / "r" / "records.jsonl").read_text(), "the second's")
            before = fleet.lines()
            workers[0].kill()
            wait_until(lambda: fleet.lines() > before + 40, "the second's alone")
            done = Run(fleet.master, fleet.results)
        finally:
            end(fleet.master, *workers)
    records = by_due(done)
    numbers = [record["seq"] for record in records]
    assert len(numbers) == len(set(numbers))
    # Only requests that the dead worker had not sent are missing, and they are consecutive.
    missing = sorted(set(range(max(numbers))) - set(numbers))
    alone = [record["seq"] for record in records if record["seq"] > max(missing, default=0)]
    assert alone == list(range(alone[0], alone[0] + len(alone)))
    assert {record["worker"] for record in records[-10:]} == {1}
    assert len(missing) <= 20 * 8  # Locust notices a missing worker after some seconds
    joined = next(record["seq"] for record in records if record["worker"] == 1)
    shared = [record["worker"] for record in records if joined <= record["seq"] < min(missing, default=joined)]
    assert all(one != other for one, other in pairwise(shared))  # in turn, from the first one on
    start = records[0]["due_at"] - numbers[0] / 20
    error = 2 * max(worker["master_offset_error_s"] or 0.1 for worker in info(done)["workers"]) + 1e-3
    for record in records:
        assert record["due_at"] == pytest.approx(start + record["seq"] / 20, abs=error)
    assert any("worker 0" in reason for reason in done.summary["validity"]["reasons"])


def test_trace_is_replayed_at_its_speed(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text("100\n100.4\n100.4\n101\n")
    words = ("-u", "5", "--arrival-trace", tmp_path / "trace.jsonl", "--trace-speed", "2")
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", *words)
    assert done.code == 0, done.err
    first, *rest = [record["due_at"] for record in by_due(done)]
    assert [due - first for due in rest] == pytest.approx([0.2, 0.2, 0.5], abs=1e-5)


def by_choice(summary: dict[str, Any]) -> dict[str, int]:
    """The number of requests that options exclude. Requests excluded because this machine was late do not count."""
    return {name: summary["left_out"][name] for name in ("warmup", "trim_start", "trim_end")}


@pytest.mark.long
@pytest.mark.parametrize("workers", [[], ["2"]])
def test_warm_up_is_sent_and_recorded_but_excluded_from_metrics(
    clips: Path, tmp_path: Path, workers: list[str]
) -> None:
    fleet = processes(int(workers[0])) if workers else []
    with serve(*FAST, "--fault", "500@clip03") as host:
        done = run(host, clips, tmp_path / "r", "-u", "4", "--requests", "20", "--warmup-requests", "10", *fleet)
    assert done.code == 0, done.err  # the failed request was a warm-up
    records = done.records
    assert sorted(record["seq"] for record in records if record["warmup"]) == list(range(10))
    assert sorted(record["seq"] for record in records if not record["warmup"]) == list(range(10, 30))
    assert done.summary["requests"]["by_outcome"] == {"ok": 20}
    assert by_choice(done.summary) == {"warmup": 10, "trim_start": 0, "trim_end": 0}
    assert (done.rows[POST]["num_requests"], done.rows[POST]["num_failures"]) == (20, 0)
    assert not [reason for reason in done.summary["validity"]["reasons"] if "are missing" in reason]
    assert "Excluded: 10 warm-up requests, 0 trimmed at the start, 0 at the end" in done.out


@pytest.mark.long
def test_warm_up_and_trimming_by_time(clips: Path, tmp_path: Path) -> None:
    words = ["-u", "9", "--request-rate", "20", "--arrivals", "constant", "--requests", "80"]
    words += ["--warmup-time", "1", "--trim-start", "0.5", "--trim-end", "1"]
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", *words)
    assert sorted(record["seq"] for record in done.records if record["warmup"]) == list(range(20))
    # Those due in the first second are warm-up, ten more are trimmed, and at the end those of the last second.
    assert by_choice(done.summary) == {"warmup": 20, "trim_start": 10, "trim_end": 20}
    assert done.summary["requests"]["total"] == 30
    kept = [record for record in by_due(done) if 30 <= record["seq"] < 60]
    assert kept[-1]["due_at"] - kept[0]["due_at"] == pytest.approx(29 / 20, abs=1e-5)
    starts = [record["started_at"] for record in kept]
    assert done.summary["wall_s"] == pytest.approx(max(starts) - min(starts))


@pytest.mark.parametrize(
    ("slos", "fault", "ends"),
    [
        (["ttft:p95:20000", "errors:rate:0"], "", (0, "SLOs: passed")),
        (["ttft:p95:1ms"], "", (1, "SLO ttft:p95 <= 1 ms: ")),
        (["e2el:max:20000"], "500@clip03", (1, "SLOs: passed")),  # a failure fails the test unless an SLO allows it
        (["e2el:max:20000", "errors:rate:0.1"], "500@clip03", (0, "SLO errors:rate <= 0.1: 0.05, pass")),
        (["errors:rate:0.04"], "500@clip03", (1, "SLO errors:rate <= 0.04: 0.05, FAIL")),
        (["errors:rate:1"], "500", (1, "SLOs: NOT passed; no request succeeded")),
    ],
)
def test_slos_determine_the_exit_code(
    clips: Path, tmp_path: Path, slos: list[str], fault: str, ends: tuple[int, str]
) -> None:
    words = [word for slo in slos for word in ("--slo", slo)]
    with serve(*FAST, *(["--fault", fault] if fault else [])) as host:
        done = run(
            host,
            clips,
            tmp_path / "r",
            "-u",
            "4",
            "--requests",
            "20",
            "--goodput",
            "ttft:20000",
            *words,
            "--allow-client-bound",
        )
    assert done.code == ends[0], done.out
    assert ends[1] in done.out
    verdict = done.summary["verdict"]
    assert (verdict["exit_code"], verdict["passed"]) == (done.code, done.code == 0)
    assert "\nVerdict: passed" in done.out if verdict["passed"] else "\nVerdict: NOT passed: " in done.out
    assert [f"{slo['name']}:{slo['limit']:g}" for slo in done.summary["slo"]] == [
        slo.removesuffix("ms") for slo in slos
    ]
    good = done.summary["requests"]["success"]
    assert done.summary["goodput"] == pytest.approx(good / done.summary["wall_s"])


@pytest.mark.long
def test_stop_while_users_wait_for_due_times(clips: Path, tmp_path: Path) -> None:
    with serve(*SLOW) as host:
        results = tmp_path / "r"
        # No request is due at the very end: the last is due 2.5 s after the first.
        words = ("-u", "9", "--request-rate", "3", "--arrivals", "constant", "-t", "3", "--stop-timeout", "10")
        done = run(host, clips, results, *words)
        assert running_streams(host) == 0
    assert {record["outcome"] for record in done.records} == {"ok"}
    assert 2 <= len(done.records) <= 9
    assert json.loads((results / "run.json").read_text())["workers"][0]["unsent"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-u", "4", "--request-rate", "0"], "--request-rate must be above 0"),
        (["--request-rate", "5"], "an open loop needs -u"),
        (["-u", "4", "--rate-stages", "10s-20s:5"], "is not a stage; use"),
        (["-u", "4", "--slo", "ttft:p101:5"], "not 'p101'"),
        (["-u", "4", "--goodput", "itl:5"], "not 'itl', such as ttft:500"),
    ],
)
def test_invalid_input_is_refused_before_anything_is_sent(
    clips: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    assert said in error_of("--data", clips, "--results", tmp_path / "r", *words)
    assert not (tmp_path / "r" / "records.jsonl").exists()

"""The text printed at the end of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from asr_load.report.summary import print_summary
from asr_load.results.record_file import RecordFile, read_records
from asr_load.results.runfile import write_run
from asr_load.results.summary import summarise_folder
from asr_load.stream.record import Record
from harness.records import failure, health, record, run_info, worker_info


def printed(folder: Path, capsys: pytest.CaptureFixture[str], *records: Record) -> list[str]:
    file = RecordFile(folder / "records.jsonl")
    for item in records:
        file.write(item)
    file.close()
    info = run_info(workers=[worker_info(health=health(loop_lag_p99=0.02))])
    write_run(folder, info)
    print_summary(folder, info, summarise_folder(folder), read_records(folder), sys.stdout)
    return capsys.readouterr().out.splitlines()


def test_summary_has_sentence_totals_figures_requests_and_verdict_in_this_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(tmp_path, capsys, record(1, ttft=0.4, e2el=0.6), record(0), failure(2, "http_503"))
    assert lines[1:7] == [
        "Held 1 stream for 10 s: TTFT p95 390 ms, errors 33.3%, WER 0.0%. The load generator may have been too"
        " slow, so the figures are suspect.",
        "",
        "=== ASR Benchmark Summary ===",
        "Total: 3, Success: 2, Fail: 1",
        "Average TTFT: 0.300s",
        "Average Latency: 0.500s",
    ]
    first = lines.index("[0] ok ttft=0.200s lat=0.400s tokens=3")
    assert lines[first + 1 : first + 4] == ["[1] ok ttft=0.400s lat=0.600s tokens=3", "[2] http_503 why", ""]
    starts = ("Latencies of", "Throughput: ", "[0] ", "Client: ", "Server: ", "Verdict: ", "Results: ")
    places = [next(at for at, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert places == sorted(places)
    assert places[-1] == len(lines) - 1


def test_summary_prints_tables_accuracy_and_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(printed(tmp_path, capsys, record(0), record(1, audio_s=7.0, text="he sad"), failure(2, "cut")))
    for part in ("TTFT", "ITL", "TPOT", "E2E", "RTF", "By clip length", "5 to 10"):
        assert part in text
    assert "WER 25.0%" in text
    assert "Failures: 1 cut" in text
    assert "Client: doubtful (compiled reader" in text
    assert "Server: errors 33.3%, WER 25.0%" in text
    assert "Figures: suspect" in text
    assert "  - the event loop was 20.0 ms late at p99 (limit 10 ms)" in text
    assert "\x1b" not in text


def test_summary_without_a_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(tmp_path, capsys, failure(0, "connect"))
    assert lines[1].startswith(
        "No request succeeded: 1× http://127.0.0.1:1: why: is the server running there? (--ready-timeout waits for it)"
    )
    assert lines[4:7] == ["Total: 1, Success: 0, Fail: 1", "Average TTFT: n/a", "Average Latency: n/a"]
    assert "[0] connect why" in lines


def test_only_20_requests_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(tmp_path, capsys, *(record(n) for n in range(25)))
    assert sum(line.startswith("[") for line in lines) == 20
    assert f"… 5 more in {tmp_path / 'records.jsonl'}" in lines


def test_unknown_values_are_printed_as_not_available(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(printed(tmp_path, capsys, record(0, output_tokens_source="chunks", finish_reason="length")))
    assert "n/a tokens/s, n/a tokens per chunk" in text
    assert "tokens=n/a" in text
    assert "Truncated by another limit: 1 response ended early, such as at the model's context length" in text
    assert "Truncated:" not in text

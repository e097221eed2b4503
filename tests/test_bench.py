"""The command line of bench.py: its address, its checks, and its runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from asr_load.cli import bench
from asr_load.errors import InputError
from conftest import write_folder
from harness.runs import FAST, run
from harness.serving import serve


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        (None, None, "http://127.0.0.1:30000"),
        (None, 8000, "http://127.0.0.1:8000"),
        ("gpu", None, "http://gpu:30000"),
        ("10.0.0.7", 8000, "http://10.0.0.7:8000"),
        ("gpu:8000", None, "http://gpu:8000"),
        ("gpu:8000", 8000, "http://gpu:8000"),
        ("http://gpu", None, "http://gpu"),
        ("http://gpu", 8000, "http://gpu:8000"),
        ("https://[::1]/v1", 8000, "https://[::1]:8000/v1"),
        ("http://gpu:1/v1/chat/completions", None, "http://gpu:1/v1/chat/completions"),
        ("http://gpu:port", 8000, "http://gpu:port"),
    ],
)
def test_bench_accepts_host_and_port_or_a_url(host: str | None, port: int | None, address: str) -> None:
    assert bench.server_address(host, port) == address


def test_bench_refuses_two_ports() -> None:
    with pytest.raises(InputError) as refused:
        bench.server_address("http://me:hush@gpu:1", 2)
    assert str(refused.value) == "--host has port 1, but --port is 2: give only one of them"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slo", "nonsense:p50:1"], "the metric 'nonsense' is unknown"),
        (["--no-such-option", "3"], "there is no option --no-such-option"),
        (["--results", "old"], "--results old already holds a run"),
        (["--repeats", "0"], "--repeats must be a whole number from 1 to 100"),
        (["--audio-format", "flac"], "is flac, but --unique dither needs WAV"),
        (
            ["--audio-format", "opus", "--unique", "none", "--api", "chat-input-audio"],
            "--api chat-input-audio supports only wav and mp3, but --data has opus",
        ),
    ],
)
def test_bench_checks_options_before_it_prepares_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    source = write_folder(tmp_path / "set", {"a": 0.5})
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "records.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--dataset", str(source), "--processes", "1", *words])
    assert bench.main() == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "asr_data").exists()


@pytest.mark.long
def test_bench_with_cache_ratio_sends_each_clip_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_folder(tmp_path / "set", {f"clip{number}": 0.5 for number in range(5)})
    commands: list[list[str]] = []
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    monkeypatch.setattr(os, "execv", lambda _, command: commands.append(command))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--dataset", str(source), "--cache-ratio", "--processes", "1"])
    bench.main()
    words = commands[0][commands[0].index("--requests") :]
    assert words[:4] == ["--requests", "10", "--unique", "once"]
    with serve(*FAST) as host:
        done = run(host, Path(words[words.index("--data") + 1]), tmp_path / "r", "-u", "2", *words[:4])
    assert "Cache: the TTFT of a repeated clip is " in done.out
    assert done.summary["cache_ratio"]["clips"] == 5

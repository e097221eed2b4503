"""asr-load demo: a first test of a recognizer on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from asr_load.cli.demo import print_end
from asr_load.results.summary import summarise_folder
from harness.patience import PATIENCE_S
from harness.records import health, record, run_folder, run_info, worker_info

DEMO = (sys.executable, "-m", "asr_load.cli.main", "demo")
LATE: dict[str, Any] = {"loop_lag_p99": 0.018, "loop_lag_max": 0.02}


@pytest.mark.parametrize("late", [False, True])
def test_demo_ends_with_the_report_and_the_next_command(
    late: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = run_info(workers=[worker_info(health=health(**LATE) if late else health())])
    folder = run_folder(tmp_path / "r", [record(n) for n in range(9)], info)
    summarise_folder(folder)
    print_end(folder)
    lines = capsys.readouterr().out.splitlines()
    doubts = [line for line in lines if line.startswith("The figures are ")]
    assert doubts == [
        "The figures are suspect: the event loop was 18.0 ms late at p99 (limit 10 ms). The server ran on this machine"
        " too. For a demo, this does not matter."
    ] * (1 if late else 0)
    assert f"Read the report: {folder / 'report.html'}" in lines
    assert lines[-1].endswith(" --headless -u 4 -t 1m --host http://ADDRESS:PORT")


def test_demo_says_how_to_activate_its_environment_if_necessary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path / "r", [record(0)], run_info())
    summarise_folder(folder)
    programs = tmp_path / "my env" / "bin"
    programs.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    for name in ("activate", "asr-load"):
        (programs / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    for path, expected in (("/nowhere", ["  . 'my env/bin/activate'"]), (str(programs), [])):
        monkeypatch.setenv("PATH", path)
        print_end(folder)
        assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("  . ")] == expected


def test_demo_without_the_packages_of_the_server_names_them(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(name='uvicorn')\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(DEMO, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the demo's server did not start: uvicorn is missing: pip install 'asr-load[server]'")
    assert not (tmp_path / "results").exists()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["Starting", "Sending"])
def test_signal_ends_the_demo_and_its_server(number: signal.Signals, moment: str, tmp_path: Path) -> None:
    env = {**os.environ, "LOCUST_SKIP_MONKEY_PATCH": ""}
    with subprocess.Popen(DEMO, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any(line.startswith(moment) for line in demo.stdout)
        started = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(number)
        demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 128 + number
    assert not [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

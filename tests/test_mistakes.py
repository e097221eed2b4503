"""Mistakes of users: one line with what is wrong and what to do, exit code 2, and no user starts."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from asr_load.settings import commandline
from conftest import CHECKOUT
from harness.checks import error_of
from harness.forked import Forked
from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.runs import FAST, environment, locust, run
from harness.serving import serve, wait_until
from harness.ui import ui

NOBODY = "http://127.0.0.1:9"


def refused(*words: str | Path, cwd: Path = CHECKOUT, ui: bool = False) -> str:
    """The error line of a refused command line."""
    options = [] if ui else ["--headless", "--only-summary"]
    process = Forked("locust", ["--loglevel", "ERROR", *options, *words], cwd, environment())
    out, err = process.communicate(PATIENCE_S)
    assert (process.returncode, out) == (2, ""), (process.returncode, out, err)
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--headless needs -u, the number of concurrent streams"),
        (["--concurrency", "4"], "there is no option --concurrency: -u N sets the number of concurrent streams"),
        (["-u", "0"], "-u must be above 0, not 0"),
        (["-u", "many"], "invalid int value: 'many'"),
        (["-u", "1", "--slo", "ttft:500"], "use METRIC:STATISTIC:LIMIT, such as ttft:p95:500"),
        (["-u", "1", "--data", "docs"], "prepare.py --dataset docs --out asr_data/docs"),
        (["-u", "1", "--results", "/proc/mine"], "/proc is not a writable folder"),
        (["-u", "1", "--data", "d" * 5000], f"--data {'d' * 200}: File name too long"),
    ],
)  # fmt: skip
def test_command_line_mistake_gives_a_one_line_error(words: list[str], said: str) -> None:
    line = refused(*words)
    assert said in line
    assert "hush" not in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vus", "4"], "there is no option --vus: -u N sets"),
        (["--num-clients=4"], "there is no option --num-clients: -u N sets"),
        (["-u", "1", "-n", "4"], "there is no option -n: --requests N ends the test after N requests"),
        (["-u", "1", "--port=30000"], "there is no option --port: --host http://ADDRESS:PORT names the server"),
        (["-u", "1", "--target", "http://h:1"], "there is no option --target: --host http://ADDRESS:PORT names the"),
        (["-u", "1", "--streaming"], "there is no option --streaming: remove it, because every response is streamed"),
        (["-u", "1", "--dataset-name", "hf"], "no option --dataset-name: 'python scripts/prepare.py --dataset NAME"),
        (["-u", "1", "--rate", "5"], "there is no option --rate: --request-rate R sends R requests per second"),
        (["-u", "1", "--stage=30s:5"], "there is no option --stage: --rate-stages 30s:5-20 ramps the request rate"),
        (["-u", "1", "--ramp-up-time", "3"], "--trim-start S and --trim-end S exclude the first and"),
        (["-u", "1", "--num-promts", "4"], "there is no option --num-promts; did you mean --num-prompts?"),
        (["-u", "1", "--qwertz", "4"], "there is no option --qwertz (see asr-load options"),
        (["-u", "-2"], "-u must be above 0, not -2"),
        (["-u", "1", "-t", "0"], "-t must be above 0, not 0"),
        (["-u", "1", "--api", "chats"], "invalid choice: 'chats'"),
        (["-u", "1", "Speechuser"], "'Speechuser' is neither a user class nor an option's value; user classes"),
        (["-u", "1", "--slo", "errors:0.1"], "as errors:rate:0.1"),
        (["-u", "1", "--goodput", "ttft:500", "tbt:40"], "use one of ttft, tpot, e2el"),
        (["-u", "1", "--data", "nowhere"], "there is no such folder"),
        (["-u", "1", "--host", "http://127.0.0.1:1/v2"], "--host cannot have this path"),
        (["-u", "1", "--data", "asr_data/none"], "prepare.py --dataset DATASET --out asr_data/none"),
        (["-u", "1", "--data", "asr_data"], "--data asr_data is not a prepared folder, but contains some: asr_data/"),
        (["-u", "1", "--data", "README.md"], "is a file, not a prepared folder; prepare it: python scripts/prepare.py"),
        (["-u", "1", "--data", "openslr/librispeech_asr"], "--dataset openslr/librispeech_asr --out asr_data/librispe"),
        (["-u", "1", "--dataset", "preset:fleurs-de"], "--dataset preset:fleurs-de --out asr_data/fleurs-de"),
        (["-u", "1", "--goodput", "ttft:0.5"], "0.5 has no unit. Use ttft:0.5s for seconds or ttft:0.5ms for milli"),
        (["-u", "1", "--host", "http://me:hush@127.0.0.1:9/v2"], "use --host http://127.0.0.1:9 --endpoint /v2/v1/"),
        (
            ["-u", "1", "--host", "http://127.0.0.1:9/v1/audio/transcriptions"],
            "--host http://127.0.0.1:9/v1/audio/transcriptions is the path of --api transcriptions, but this test uses"
            " --api chat: add --api transcriptions, or use --host http://127.0.0.1:9",
        ),
        (["-u", "1", "--metadata", "gpu"], "--metadata needs KEY=VALUE"),
        (["-u", "1", "--endpoint", "v1/x"], "is not a path such as /openai/v1/chat/completions"),
        (["-u", "2", "--processes", "2", "--master-bind-port", "7001"], "and --master-port to the same port"),
        *(
            (["-u", "1", option, "d" * 5000], f"{option} {'d' * 200}: File name too long")
            for option in ("--data", "--results", "--arrival-trace", "--csv", "--html", "--json-file")
        ),
    ],
)  # fmt: skip
def test_each_command_line_mistake_has_its_error(words: list[str], said: str) -> None:
    error = error_of(*words)
    assert said in error
    assert "hush" not in error


def test_master_without_an_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commandline, "NAMED_AFTER_S", 0.0)
    assert "cannot be resolved" in error_of("--worker", "--master-host", "no.such.host.invalid")


def test_raw_folder_is_not_proposed_as_the_output_folder(tmp_path: Path) -> None:
    (tmp_path / "my recordings").mkdir()
    line = refused("-u", "1", "--data", tmp_path / "my recordings")
    assert f"--dataset '{tmp_path}/my recordings' --out asr_data/my-recordings" in line


def test_pasted_url_in_the_web_form(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host, ui("one process", NOBODY, clips, tmp_path, "--requests", "2") as page:
        for path, said in (
            ("/v1/audio/transcriptions", "this test uses --api chat: add --api transcriptions, or use --host"),
            ("/v2", f"--host cannot have this path: use --host {host} --endpoint /v2/v1/chat/completions"),
        ):
            answer = page.post("/swarm", user_count=1, spawn_rate=1, host=host + path)
            assert said in answer["message"]
        answer = page.post("/swarm", user_count=1, spawn_rate=1, host=host, goodput="ttft:0.5")
        assert "0.5 has no unit" in answer["message"]
        page.start(host=f"{host}/v1/chat/completions/")
        wait_until(lambda: page.ended(1), "the end of the test")
        assert page.asked(1)["host"] == host


@contextmanager
def taken(host: str = "127.0.0.1") -> Iterator[str]:
    with socket.create_server((host, 0)) as server:
        yield str(server.getsockname()[1])


def test_port_in_use_gives_an_error_with_a_cure() -> None:
    with taken() as port:
        assert f"port {port} is taken, perhaps by another Locust: choose a free one with --web-port" in refused(
            "--web-port", port, ui=True
        )
        for role in ("--master",), ("--processes", "2", "--master-port", port):
            line = refused(*role, "-u", "2", "--master-bind-port", port, "--master-bind-host", "127.0.0.1")
            assert f"port {port} is taken, perhaps by another Locust: choose a free one with --master-bind-port" in line
    assert "--web-host 203.0.113.7" in refused("--web-host", "203.0.113.7", ui=True)


@pytest.mark.long
def test_port_in_time_wait_is_free(clips: Path, tmp_path: Path) -> None:
    """Connections of the last test may be in TIME_WAIT for a minute."""
    port = str(free_port())
    words = ("--master", "--expect-workers", "1", "--master-bind-port", port, "-u", "1", "--requests", "2")
    with serve(*FAST) as host:
        for number in range(2):
            results = tmp_path / str(number)
            master = locust(*words, "--host", host, "--data", clips, "--results", results)
            worker = locust("--worker", "--master-port", port)
            _, err = master.communicate(timeout=PATIENCE_S)
            assert master.returncode == 0, err
            worker.communicate(timeout=PATIENCE_S)


def test_worker_reports_that_it_waits_for_its_master() -> None:
    port = str(free_port())
    worker = locust("--worker", "--master-port", port)
    assert worker.stderr is not None
    assert worker.stderr.readline() == f"waiting for a master on 127.0.0.1:{port}; start one with: locust --master\n"
    worker.send_signal(signal.SIGINT)
    assert worker.communicate(timeout=PATIENCE_S) == ("", "stopped before any test had begun (SIGINT)\n")
    assert worker.returncode == 130


@pytest.mark.long
def test_worker_that_waited_takes_part(clips: Path, tmp_path: Path) -> None:
    port = str(free_port())
    worker = locust("--worker", "--master-port", port)
    assert worker.stderr is not None
    worker.stderr.readline()
    with serve(*FAST) as host:
        options = ("--master", "--expect-workers", "1", "--master-bind-port", port, "--requests", "3")
        done = run(host, clips, tmp_path / "r", "-u", "1", *options)
    assert done.code == 0, done.err
    assert len(done.records) == 3
    worker.communicate(timeout=PATIENCE_S)


def test_master_reports_how_many_workers_it_waits_for() -> None:
    port = str(free_port())
    master = locust(
        "--master", "--expect-workers", "2", "--master-bind-port", port, "-u", "2", "--host", NOBODY, "--no-preflight"
    )
    assert master.stderr is not None
    lines = iter(master.stderr.readline, "")
    line = next(line for line in lines if line.startswith("waiting"))
    assert line.startswith("waiting for workers: 0 of 2 joined (locust --worker --master-host ADDRESS --master-port")
    master.send_signal(signal.SIGINT)
    _, err = master.communicate(timeout=PATIENCE_S)
    assert master.returncode == 130
    assert "Traceback" not in err
    assert "stopped before any test had begun" in err


@pytest.mark.long
def test_search_runs_from_another_folder(clips: Path, tmp_path: Path) -> None:
    """The locustfile finds files next to it. The checkout's locust.conf is not read there."""
    with serve(*FAST, "--slots", "2") as host:
        process = locust(
            "-f", CHECKOUT / "locustfiles" / "capacity.py", "-u", "2", "--slo", "errors:rate:0.1", "--step-time", "4",
            "--host", host, "--data", clips, cwd=tmp_path,
        )  # fmt: skip
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith("maximum effective streams: 2")


@pytest.mark.parametrize("script", sorted(file.stem for file in (CHECKOUT / "scripts").glob("*.py")))
def test_help_of_a_script_does_nothing_else(script: str) -> None:
    before = {file: file.stat().st_mtime_ns for file in (CHECKOUT / "docs" / "images").iterdir()}
    done = subprocess.run(
        [sys.executable, CHECKOUT / "scripts" / f"{script}.py", "--help"],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout
    assert before == {file: file.stat().st_mtime_ns for file in (CHECKOUT / "docs" / "images").iterdir()}


@pytest.mark.parametrize(
    "code",
    [
        "import runpy; runpy.run_path('scripts/prepare.py', run_name='__main__')",
        "import runpy; runpy.run_path('scripts/serve.py', run_name='__main__')",
        "import asr_load.load.startup",
    ],
)
def test_old_python_is_refused(code: str) -> None:
    """Simulated: this Python claims to be 3.10."""
    old = "import sys; sys.path.insert(0, '.'); sys.version_info = (3, 10, 12); sys.version = '3.10.12 (main)'; "
    done = subprocess.run(
        [sys.executable, "-c", old + code],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: asr-load needs Python 3.11 or newer, but this is 3.10.12\n"


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "onnxruntime"])
def test_server_without_its_packages_gives_a_one_line_error(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['serve.py', '--port', '0']; "
    code += "from asr_server.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {missing}")
    assert "is missing: pip install 'asr-load[server]'" in line


def test_scripted_server_says_that_its_wer_means_nothing(clips: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, CHECKOUT / "scripts" / "serve.py", "--port", "0", *FAST], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    host = process.stdout.readline().rpartition(" ")[2].strip()
    assert process.stdout.readline() == "It sends a fixed text and ignores the audio, so WER has no meaning.\n"
    done = run(host, clips, tmp_path / "r", "-u", "2", "--requests", "6")
    process.terminate()
    process.wait(PATIENCE_S)
    process.stdout.close()
    assert "almost nothing matches" in next(line for line in done.out.splitlines() if line.startswith("Accuracy:"))


@pytest.mark.long
def test_results_removed_during_the_test_give_one_error(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        process = locust("-u", "2", "--host", host, "--data", clips, "--results", tmp_path / "r", "-t", "8")
        records = tmp_path / "r" / "records.jsonl"
        wait_until(lambda: records.exists() and records.read_bytes(), "the run began")
        for file in (tmp_path / "r").iterdir():
            file.unlink()
        (tmp_path / "r").rmdir()
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert err.count(f"the run cannot be written to {tmp_path}/r") == 1


@pytest.mark.long
def test_runs_of_the_same_second_have_separate_folders(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "asr_data").symlink_to(CHECKOUT / "asr_data")
    words: Sequence[str | Path] = ("-f", CHECKOUT / "locustfiles" / "transcribe.py", "-u", "1", "--requests", "2")
    with serve(*FAST) as host:
        runs = [locust(*words, "--host", host, "--data", clips, cwd=tmp_path) for _ in range(3)]
        for process in runs:
            _, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, err
    folders = [path for path in (tmp_path / "results").iterdir() if path.is_dir()]
    assert len(folders) == 3
    assert all(re.fullmatch(r"\d{8}-\d{4}-\d\d_default_1-stream(-[23])?", folder.name) for folder in folders)
    # The last one that wrote the page had seen the others' results.
    page = (tmp_path / "results" / "index.html").read_text()
    assert all(f'data-name="{folder.name}"' in page for folder in folders)
    assert page.count("Held 1 stream for ") == 3
    for folder in folders:
        assert len((folder / "records.jsonl").read_text().splitlines()) == 2

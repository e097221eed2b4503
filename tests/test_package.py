"""The package: its public names, and the sdist and the wheel, installed where there is no checkout."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from locust import HttpUser
from packaging.requirements import Requirement

import asr_load
from conftest import CHECKOUT
from harness.fleets import SLOW
from harness.patience import PATIENCE_S
from harness.runs import FAST
from harness.serving import serve

PUBLIC = {"Clip", "Record", "SpeechUser", "open_shards", "read_records", "summarise", "summarise_folder"}


def test_public_names_are_exported_and_documented() -> None:
    assert set(asr_load.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(asr_load, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = asr_load.Nothing


def test_speech_user_is_locusts_http_user_with_four_additions() -> None:
    """Locustfiles use these four: docs/locustfile.md describes them."""
    user = asr_load.SpeechUser
    assert issubclass(user, HttpUser)
    assert user.options == {}
    methods = (user.next_request, user.send, user.on_record)
    assert [list(inspect.signature(method).parameters) for method in methods] == [
        ["self"],
        ["self", "request"],
        ["self", "record"],
    ]


def test_reading_records_imports_no_locust() -> None:
    code = "import sys, asr_load; asr_load.read_records, asr_load.summarise, asr_load.Clip, asr_load.open_shards; "
    code += "assert 'locust' not in sys.modules and 'gevent' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this checkout and the wheel that is built from this sdist."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    # Build a copy, as setuptools leaves folders where it builds.
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in tracked.splitlines():
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CHECKOUT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel. Other packages come from the environment of the tests."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (wheel,) = built.glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--python",
        str(place / "bin" / "python"),
    ]
    subprocess.run([*pip, "install", "--no-deps", wheel], check=True, timeout=300)
    # A line in a .pth file adds a folder without its own .pth files, and so without the checkout.
    (site_packages(place) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


def site_packages(place: Path) -> Path:
    (found,) = place.glob("lib/python*/site-packages")
    return found


def away(folder: Path) -> dict[str, str]:
    """Environment variables for a program outside of the checkout, with its cache below a folder."""
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONSAFEPATH": "1", "LOCUST_SKIP_MONKEY_PATCH": ""}
    env.pop("PYTHONPATH", None)
    return env


def run_installed(place: Path, folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the installed `asr-load` with these words in a folder that is not a checkout."""
    where = "import asr_load; print(asr_load.__file__)"
    found = subprocess.run(
        [place / "bin" / "python", "-c", where],
        cwd=folder, env=away(folder), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(place)
    return subprocess.run(
        [place / "bin" / "asr-load", *map(str, words)],
        cwd=folder, env=away(folder), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.mark.long
def test_pypi_accepts_the_sdist_and_the_wheel(built: Path) -> None:
    files = sorted(built.iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("PASSED")) == (0, 2), done.stdout + done.stderr


@pytest.mark.long
def test_the_wheel_of_the_sdist_runs_the_demo(installed: Path, tmp_path: Path) -> None:
    """`asr-load demo`: the recognizer, and the 15 clips of the sample."""
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert run_installed(installed, tmp_path, "--version").stdout.startswith(f"asr-load {version} (Locust ")
    if shutil.which("cc"):
        compiled = "import asr_load.http._socket_reader, asr_load.stream._events, asr_server._chunk_sender"
        subprocess.run([installed / "bin" / "python", "-c", compiled], cwd=tmp_path, env=away(tmp_path), check=True)
    done = run_installed(installed, tmp_path, "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = (tmp_path / "results").glob("*_moonshine-tiny_4-streams")
    summary = json.loads((results / "summary.json").read_text())
    assert summary["requests"]["fail"] == 0
    assert summary["requests"]["success"] >= 15
    assert summary["wer"] < 0.2
    assert ("For a demo, this does not matter" in done.stdout) is (summary["validity"]["verdict"] != "valid")
    assert f"Read the report: {results.relative_to(tmp_path)}/report.html" in done.stdout
    assert (results / "report.html").is_file()
    assert "asr-load run --headless" in done.stdout


@pytest.mark.long
def test_wheel_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        # The wheel contains the sample, which is prepared at its first use.
        words = ("--headless", "-u", "2", "--host", host, "--requests", "15", "--results", "r")
        done = run_installed(installed, tmp_path, "run", *words, "--processes", "2")
        assert done.returncode == 0, done.stderr
        assert "Total: 15, Success: 15, Fail: 0" in done.stdout
        assert "Accuracy: WER" in done.stdout
        assert json.loads((tmp_path / "r" / "run.json").read_text())["git"] == ""
        done = run_installed(installed, tmp_path, "capacity", *words[:5], "--slo", "ttft:p95:9000", "--step-time", "2")
        assert "maximum effective streams: 2" in done.stdout, done.stderr
        port = host.rpartition(":")[2]
        sample = site_packages(installed) / "asr_load" / "shipped" / "asr_data" / "sample"
        done = run_installed(installed, tmp_path, "bench", "--port", port, "--dataset", sample, "--limit", "3")
        assert "Total: 3, Success: 3, Fail: 0" in done.stdout, done.stderr
        assert list((tmp_path / "asr_data").iterdir())
        mine = tmp_path / "mine.py"
        mine.write_text("import asr_load\n\n\nclass Mine(asr_load.SpeechUser):\n    pass\n")
        done = run_installed(installed, tmp_path, "run", "-f", mine, *words[:5], "--requests", "2", "--results", "m")
        assert "Total: 2, Success: 2, Fail: 0" in done.stdout, done.stderr
    with serve(*SLOW) as host:
        # As in a checkout, requests in flight at the end may finish.
        few = ("--headless", "-u", "2", "-r", "10", "--requests", "2", "--host", host)
        run_installed(installed, tmp_path, "run", *few, "--results", "t")
        assert json.loads((tmp_path / "t" / "summary.json").read_text())["requests"]["by_outcome"] == {"ok": 2}
    done = run_installed(installed, tmp_path, "report", "r")
    assert "Total: 15, Success: 15, Fail: 0" in done.stdout


TWO = """
import sys
from locust.argument_parser import get_parser
from locust.env import Environment
import asr_load
from asr_load.load.startup import attach

class User(asr_load.SpeechUser):
    pass

made = []
for results, number in zip(sys.argv[3:], (3, 5)):
    words = ["--host", sys.argv[1], "--data", sys.argv[2], "--results", results, "-u", "1", "--requests", str(number)]
    options = get_parser(default_config_files=[]).parse_args(words)
    environment = Environment(user_classes=[User], parsed_options=options, host=options.host, stop_timeout=10)
    environment.create_local_runner()
    attach(environment)
    made.append(environment)
for environment in made:
    environment.runner.start(1, 10)
for environment in made:
    environment.runner.greenlet.join()
"""


def test_two_environments_in_one_process_are_independent(clips: Path, tmp_path: Path) -> None:
    """Each has its own options, users, records and end."""
    with serve(*FAST) as host:
        words = [sys.executable, "-c", TWO, host, str(clips), str(tmp_path / "a"), str(tmp_path / "b")]
        env = {**os.environ, "LOCUST_SKIP_MONKEY_PATCH": ""}
        done = subprocess.run(
            words, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    assert done.returncode == 0, done.stderr
    for folder, count in (("a", 3), ("b", 5)):
        summary = json.loads((tmp_path / folder / "summary.json").read_text())
        assert summary["requests"]["by_outcome"] == {"ok": count}


def test_pinned_versions_are_within_the_ranges() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    for ranges, files in (
        (project["dependencies"], ["requirements.txt"]),
        (project["optional-dependencies"]["server"], ["requirements-server.txt", "requirements-recognizer.txt"]),
    ):
        allowed = {(needed := Requirement(line)).name: needed.specifier for line in ranges}
        text = "".join((CHECKOUT / file).read_text() for file in files)
        pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
        assert pinned.keys() == allowed.keys()
        for name, version in pinned.items():
            assert version in allowed[name], name


@pytest.mark.long
def test_installed_command_names_installed_commands(installed: Path, tmp_path: Path) -> None:
    """Outside of a checkout, there is no scripts/prepare.py and no locust.conf."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "mine.py").write_text("import asr_load\n\n\nclass Mine(asr_load.SpeechUser):\n    pass\n")
    words = ("run", "--headless", "-u", "1", "--loglevel", "ERROR")
    for more, said in (
        (("--data", "raw"), "prepare it: asr-load prepare --dataset raw --out asr_data/raw"),
        (("--data", "none"), "prepare it: asr-load prepare --dataset DATASET --out none"),
        (("--dataset-name", "hf"), "'asr-load prepare --dataset NAME --out DIR' prepares a data set"),
    ):
        done = run_installed(installed, tmp_path, *words, "--host", "http://127.0.0.1:9", *more)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr

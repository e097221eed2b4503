"""docker-compose.yml without a container engine: its schema, and every command of ours in it, run as it stands."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from conftest import CHECKOUT
from serving import wait_until
from test_fleet import end, free_port

FILE = CHECKOUT / "docker-compose.yml"


def services(**variables: str) -> dict[str, Any]:
    """The services, with `${NAME:-default}` replaced as compose does."""

    def value(match: re.Match[str]) -> str:
        return variables.get(match["name"]) or match["default"]

    text = re.sub(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, FILE.read_text())
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


def start(command: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    # The image's PATH has these two; here they are those of the tests' environment.
    words = shlex.split(command)
    programs = {"python": [sys.executable], "locust": [sys.executable, "-m", "locust"]}
    return subprocess.Popen(
        [*programs[words[0]], *words[1:]],
        cwd=cwd,
        env={**os.environ, "LOCUST_SKIP_MONKEY_PATCH": "", **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def test_the_file_is_what_compose_takes() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_loopback_is_published_and_stops_are_clean() -> None:
    for name, service in services().items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        if name != "sglang":
            assert (service["stop_signal"], service["build"]) == ("SIGINT", ".")
    assert "USER asr" in (CHECKOUT / "Dockerfile").read_text()


def test_every_command_runs_as_it_stands(tmp_path: Path) -> None:
    # The containers' names for each other become loopback, and fixed ports free ones; nothing else is changed.
    ports = {name: str(free_port()) for name in ("SERVER_PORT", "WEB_PORT", "MASTER_PORT")}
    loopback = {"SERVER_BIND": "127.0.0.1", "WEB_BIND": "127.0.0.1", "MASTER_HOST": "127.0.0.1"}
    target = f"http://127.0.0.1:{ports['SERVER_PORT']}"
    found = services(**ports, **loopback, TARGET=target)
    # As in the image: the checkout, and a folder of results beside it.
    for name in ("scripts", "locustfiles", "asr_data", "locust.conf"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    processes = {}
    try:
        for name in ("server", "master", "worker"):
            processes[name] = start(found[name]["command"], tmp_path)
            test = found[name].get("healthcheck", {}).get("test")
            if test is not None:
                url = re.search(r"http://[^']+", test)
                assert url
                wait_until(partial(answers, url[0]), f"{name} is healthy")
        ui = f"http://127.0.0.1:{ports['WEB_PORT']}"
        wait_until(lambda: b'"worker_count":1' in urlopen(f"{ui}/stats/requests").read().replace(b" ", b""), "a worker")
        form = urlencode({"user_count": 2, "spawn_rate": 2, "host": target}).encode()
        started = json.loads(urlopen(f"{ui}/swarm", form).read())
        assert started["success"], started
        wait_until(lambda: sum(1 for _ in records(tmp_path)) >= 5, "records of the master")
        for name in ("worker", "master", "server"):  # as compose stops them: with its stop_signal
            processes[name].send_signal(getattr(signal, found[name]["stop_signal"]))
        wait_until(lambda: all(process.poll() is not None for process in processes.values()), "all have ended")
    finally:
        end(*processes.values())
    (summary,) = tmp_path.glob("results/*/summary.json")
    assert json.loads(summary.read_text())["requests"]["success"] >= 5


def records(folder: Path) -> list[str]:
    return [line for file in folder.glob("results/*/records.jsonl") for line in file.read_text().splitlines()]

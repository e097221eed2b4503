"""docker-compose.yml without a container engine: its schema, and each of our commands in it, run unchanged."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from conftest import CHECKOUT
from harness.containers import answers, start
from harness.fleets import end
from harness.ports import free_port
from harness.serving import wait_until

FILE = CHECKOUT / "docker-compose.yml"


def services(**variables: str) -> dict[str, Any]:
    """The services, with `${NAME:-default}` substituted as compose does."""

    def value(match: re.Match[str]) -> str:
        return variables.get(match["name"]) or match["default"]

    text = re.sub(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, FILE.read_text())
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


def succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.long
def test_compose_file_matches_the_schema() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_publishes_only_loopback_and_stops_with_sigint() -> None:
    for name, service in services().items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        if name != "sglang":
            target = "server" if name == "server" else "harness"
            assert (service["stop_signal"], service["build"]) == ("SIGINT", {"context": ".", "target": target})
    # Kubernetes cannot verify that a user name is not root.
    assert "USER 1000:1000" in (CHECKOUT / "Dockerfile").read_text()


def test_containers_have_minimal_rights() -> None:
    text = FILE.read_text()
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "pids_limit" in service
        if name == "sglang":
            continue
        assert service["read_only"]
        assert service["tmpfs"] == ["/tmp"]
        assert "mem_limit" in service
    found = services()
    assert set(found["master"]["networks"]) == set(found["worker"]["networks"]) == {"server", "fleet"}
    # The web UI listens on the address of its name in the fleet's network.
    assert found["master"]["networks"]["fleet"] == {"aliases": ["web"]}
    assert "--web-host web " in found["master"]["command"]
    assert found["server"]["networks"] == list(found["sglang"]["networks"]) == ["server"]
    assert not any("results" in volume for name in ("server", "sglang") for volume in found[name].get("volumes", []))
    assert yaml.safe_load(re.sub(r"\$\{[^}]*\}", "x", text))["networks"].keys() == {"server", "fleet"}


@pytest.mark.long
def test_master_creates_the_fleet_token_that_workers_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    (tmp_path / "results").mkdir()
    environ = {"PATH": os.environ["PATH"], "FLEET_TOKEN_FILE": str(file)}

    def started(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", str(CHECKOUT / "scripts" / "container-start.sh"), *words]
        return subprocess.run(command, cwd=tmp_path, env=environ | more, capture_output=True, text=True, check=False)

    show = ("sh", "-c", 'printf %s "$ASR_LOAD_FLEET_TOKEN"')
    early = started(*show, "--worker")
    assert early.returncode == 2
    assert "set ASR_LOAD_FLEET_TOKEN" in early.stderr
    token = started(*show, "x", "--master", "y").stdout
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert file.read_text() == token
    assert file.stat().st_mode & 0o777 == 0o600
    assert started(*show, "x", "--master", "y").stdout == started(*show, "--worker").stdout == token
    assert started(*show, "--worker", ASR_LOAD_FLEET_TOKEN="given").stdout == "given"
    for name in ("master", "worker"):
        assert services()[name]["environment"]["FLEET_TOKEN_FILE"] == "/fleet/token"


def test_images_install_locked_versions_with_hashes() -> None:
    files = {"requirements.lock": ["requirements.txt"]}
    files["requirements-server.lock"] = ["requirements.txt", "requirements-server.txt", "requirements-recognizer.txt"]
    versions: dict[str, dict[str, str]] = {}
    for lock, names in files.items():
        text = (CHECKOUT / lock).read_text()
        versions[lock] = dict(re.findall(r"^([\w.-]+)==([\w.+-]+)", text, re.MULTILINE))
        for name in names:
            for package, version in re.findall(r"^([\w.-]+)==([\w.+-]+)", (CHECKOUT / name).read_text(), re.MULTILINE):
                assert versions[lock][package.lower().replace("_", "-")] == version
        entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
        assert all("--hash=sha256:" in entry for entry in entries)
        assert f"--require-hashes -r {lock}" in (CHECKOUT / "Dockerfile").read_text()
    # The server's image is the load generator's with more packages; the versions they share are equal.
    assert versions["requirements.lock"].items() <= versions["requirements-server.lock"].items()
    assert "onnxruntime" not in versions["requirements.lock"]


def test_server_container_stops_last() -> None:
    for name in ("master", "worker"):
        after = services()[name]["depends_on"]
        assert all(
            after[server] == {"condition": "service_started", "required": False} for server in ("server", "sglang")
        )


@pytest.mark.parametrize("role", ["master", "worker"])
def test_results_folder_of_another_user_is_refused_at_start(tmp_path: Path, role: str) -> None:
    """The error comes before the web UI starts, and names the user to run as."""
    (tmp_path / "results").mkdir(mode=0o555)
    unprivileged = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if os.getuid() == 0 else []
    if unprivileged:
        tmp_path.chmod(0o755)
    done = container_start(tmp_path, "--" + role, unprivileged=unprivileged)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    owner = (tmp_path / "results").stat()
    assert f"RUN_AS={owner.st_uid}:{owner.st_gid}" in line


def test_master_without_a_server_is_refused_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "getent").write_text("#!/bin/sh\nexit 2\n")
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    for name in ("getent", "sleep"):
        (tmp_path / name).chmod(0o755)
    env = {"TARGET": "", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = container_start(tmp_path, "--master", **env)
    assert done.returncode == 2
    assert "set TARGET=http://HOST:PORT, or add --profile demo or --profile sglang" in done.stderr
    (tmp_path / "getent").write_text("#!/bin/sh\nexit 0\n")
    done = container_start(tmp_path, "--master", **env, WEB_PORT="8089")
    assert (done.returncode, done.stderr) == (0, "open http://127.0.0.1:8089 in your browser\n")
    assert container_start(tmp_path, "--master", **env, WEB_PORT="8089", ARGS="--headless").stderr == ""


def container_start(
    cwd: Path, *words: str, unprivileged: Sequence[str] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the start script of a container before a command that does nothing."""
    # Pass the script as text: another user may not reach the file if this checkout is in a private folder.
    script = (CHECKOUT / "scripts" / "container-start.sh").read_text()
    command = [*unprivileged, "sh", "-c", script, "container-start.sh", "true", *words]
    environ = {"PATH": os.environ["PATH"], **env}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)


def test_health_checks_start_no_python() -> None:
    """Starting it every few seconds would take CPU time from the measurement."""
    checks = {name: service["healthcheck"]["test"] for name, service in services().items() if "healthcheck" in service}
    assert set(checks) == {"master", "server", "sglang"}
    assert all("python" not in " ".join(words) for words in checks.values())
    assert services()["sglang"]["healthcheck"]["start_period"] == "45m"


def test_images_have_fixed_versions() -> None:
    version = re.search(r'^version = "(.*)"$', (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    for name, service in services().items():
        tag = service["image"].rpartition(":")[2]
        assert tag == version[1] if name != "sglang" else re.fullmatch(r"v\d+\.\d+\.\d+", tag)
    lines = re.findall(r"^FROM (\S+)(?: AS (\S+))?", (CHECKOUT / "Dockerfile").read_text(), re.MULTILINE)
    assert {base for base, _ in lines} - {stage for _, stage in lines} == {"python:3.11-slim-bookworm"}


@pytest.mark.long
def test_every_compose_command_runs_unchanged(tmp_path: Path) -> None:
    # The containers' names for each other become loopback, and fixed ports become free ones. Nothing else is changed.
    ports = {name: str(free_port()) for name in ("SERVER_PORT", "WEB_PORT", "MASTER_PORT")}
    loopback = {"SERVER_BIND": "127.0.0.1", "WEB_BIND": "127.0.0.1", "MASTER_HOST": "127.0.0.1"}
    target = f"http://127.0.0.1:{ports['SERVER_PORT']}"
    found = services(**ports, **loopback, TARGET=target)
    # As in the image: the checkout, with a results folder next to it.
    for name in ("scripts", "locustfiles", "asr_data", "locust.conf"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    processes = {}
    try:
        for name in ("server", "master", "worker"):
            processes[name] = start(found[name]["command"], tmp_path)
            test = found[name].get("healthcheck", {}).get("test")
            if test is not None:
                wait_until(partial(succeeds, test[1:]), f"{name} is healthy")
        ui = f"http://127.0.0.1:{ports['WEB_PORT']}"
        wait_until(partial(answers, ui), "the web UI")
        wait_until(lambda: b'"worker_count":1' in urlopen(f"{ui}/stats/requests").read().replace(b" ", b""), "a worker")
        form = urlencode({"user_count": 2, "spawn_rate": 2, "host": target}).encode()
        started = json.loads(urlopen(f"{ui}/swarm", form).read())
        assert started["success"], started
        wait_until(lambda: sum(1 for _ in records(tmp_path)) >= 5, "records of the master")
        for name in ("worker", "master", "server"):  # as compose stops them: with stop_signal
            processes[name].send_signal(getattr(signal, found[name]["stop_signal"]))
        wait_until(lambda: all(process.poll() is not None for process in processes.values()), "all have ended")
    finally:
        end(*processes.values())
    (summary,) = tmp_path.glob("results/*/summary.json")
    assert json.loads(summary.read_text())["requests"]["success"] >= 5


def records(folder: Path) -> list[str]:
    return [line for file in folder.glob("results/*/records.jsonl") for line in file.read_text().splitlines()]

"""The Kubernetes files without a cluster: schemas, references between objects, and their commands, which are run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from locust.argument_parser import get_parser

from asr_load.load.master import FINAL_REPORT_S
from conftest import CHECKOUT
from harness.containers import answers, start
from harness.fleets import SLOW, end
from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.runs import FAST
from harness.serving import running_streams, serve, wait_until

FILE = CHECKOUT / "kubernetes.yaml"
PAGE = (CHECKOUT / "docs" / "containers.md").read_text()
PARTS: list[dict[str, Any]] = list(yaml.safe_load_all(FILE.read_text()))
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((CHECKOUT / "kustomization.yaml").read_text())
ROLES = ("master", "worker")


def the(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = (part for part in PARTS if part["kind"] == kind and name in ("", part["metadata"]["name"]))
    return found


def config() -> dict[str, str]:
    """The data of the ConfigMap that kustomize creates."""
    (generator,) = KUSTOMIZATION["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generator["literals"])


def template(role: str) -> dict[str, Any]:
    found: dict[str, Any] = the({"master": "Job", "worker": "Deployment"}[role])["spec"]["template"]
    return found


def container(role: str) -> dict[str, Any]:
    (found,) = template(role)["spec"]["containers"]
    assert isinstance(found, dict)
    assert found["name"] == role
    return found


def options() -> dict[str, str]:
    """The lines of the ConfigMap's locust.conf."""
    return dict(line.split(" = ") for line in config()["locust.conf"].strip().splitlines())


def validate(file: Path) -> tuple[int, str]:
    check = [sys.executable, "-m", "kubernetes_validate", "--strict", "--kubernetes-version", "1.37", str(file)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.long
def test_kubernetes_file_matches_the_schemas(tmp_path: Path) -> None:
    code, said = validate(FILE)
    assert code == 0, said
    # An unknown kind or version only causes a warning.
    assert said.count(" passed for resource ") == len(PARTS), said
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(FILE.read_text().replace("readOnlyRootFilesystem", "readOnlyRootFileSystem"))
    assert validate(misspelt)[0] == 1


def test_selectors_match_the_intended_pods() -> None:
    def chosen(selector: dict[str, str]) -> list[str]:
        return [role for role in ROLES if selector.items() <= template(role)["metadata"]["labels"].items()]

    (rule,) = the("NetworkPolicy", "asr-load-master")["spec"]["ingress"]
    (source,) = rule["from"]
    (spread,) = template("worker")["spec"]["topologySpreadConstraints"]
    assert chosen(the("Service")["spec"]["selector"]) == ["master"]
    assert chosen(the("Deployment")["spec"]["selector"]["matchLabels"]) == ["worker"]
    assert chosen(the("NetworkPolicy", "asr-load-master")["spec"]["podSelector"]["matchLabels"]) == ["master"]
    assert chosen(the("NetworkPolicy", "asr-load-worker")["spec"]["podSelector"]["matchLabels"]) == ["worker"]
    assert "ingress" not in the("NetworkPolicy", "asr-load-worker")["spec"]
    for both in (
        the("NetworkPolicy", "asr-load-egress")["spec"]["podSelector"],
        the("PodDisruptionBudget")["spec"]["selector"],
    ):
        assert chosen(both["matchLabels"]) == ["master", "worker"]
    assert chosen(source["podSelector"]["matchLabels"]) == ["worker"]
    assert chosen(spread["labelSelector"]["matchLabels"]) == ["master", "worker"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    # The label by which the page deletes objects and keeps others.
    label = re.search(r"kubectl delete all -l (\S+)=(\S+)", PAGE)
    assert label
    assert all(part["metadata"]["labels"] == {label[1]: label[2]} for part in PARTS)


def test_mounted_volumes_and_referenced_keys_exist() -> None:
    (generated,) = (generator["name"] for generator in KUSTOMIZATION["configMapGenerator"])
    there = {(part["kind"], part["metadata"]["name"]) for part in PARTS} | {("ConfigMap", generated)}
    for role in ROLES:
        spec = template(role)["spec"]
        named = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for mount in container(role)["volumeMounts"]} == set(named)
        for volume in named.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
            elif "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
            else:
                assert volume["emptyDir"] == {}
        # The API key is optional, as a server may need none. Without the token, no worker can join.
        values = {one["name"]: one["valueFrom"] for one in container(role)["env"] if "valueFrom" in one}
        assert values.pop("LOCUST_HOST") == {"configMapKeyRef": {"name": generated, "key": "host"}}
        assert config()["host"].startswith("http://")
        refs = {name: value["secretKeyRef"] for name, value in values.items()}
        assert {name: ref.get("optional", False) for name, ref in refs.items()} == {
            "OPENAI_API_KEY": True,
            "ASR_LOAD_FLEET_TOKEN": False,
        }
        for name, ref in refs.items():
            assert ref["key"] == name
            assert f"kubectl create secret generic {ref['name']} --from-literal" in PAGE
            assert f"--from-literal {name}=" in PAGE
    (mounted,) = (mount["mountPath"] for mount in container("master")["volumeMounts"] if mount["name"] == "config")
    words = container("master")["args"]
    assert words[words.index("--config") + 1] == f"{mounted}/locust.conf"


def test_ports_are_locusts_defaults() -> None:
    defaults = get_parser(default_config_files=[]).parse_args([])
    assert defaults.master_port == defaults.master_bind_port
    web, port = container("master")["ports"]
    assert (web["name"], web["containerPort"]) == ("http", defaults.web_port)
    (served,) = the("Service")["spec"]["ports"]
    (rule,) = the("NetworkPolicy", "asr-load-master")["spec"]["ingress"]
    (let_in,) = rule["ports"]
    assert port["containerPort"] == served["port"] == defaults.master_port
    probed = container("master")["readinessProbe"]["tcpSocket"]["port"]
    assert port["name"] == served["targetPort"] == let_in["port"] == probed
    words = container("worker")["args"]
    assert words[words.index("--master-host") + 1] == the("Service")["metadata"]["name"]
    # The web UI is reached only by port-forward: it listens on the pod's loopback, and no Service exposes it.
    assert the("Service")["spec"]["type"] == "ClusterIP"
    words = container("master")["args"]
    assert words[words.index("--web-host") + 1] == "127.0.0.1"
    forward = f"kubectl port-forward job/{the('Job')['metadata']['name']} {defaults.web_port}"
    assert forward in FILE.read_text()
    assert forward in PAGE


@pytest.mark.parametrize("role", ROLES)
def test_pods_meet_the_restricted_profile(role: str) -> None:
    """The "restricted" Pod Security Standard, a read-only root file system, no service account token."""
    spec = template(role)["spec"]
    uid = re.search(r"^USER (\d+):\d+$", (CHECKOUT / "Dockerfile").read_text(), re.MULTILINE)
    assert uid
    # Use the number, as Kubernetes cannot verify that a user name is not root.
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(uid[1]),
        "runAsGroup": int(uid[1]),
        "fsGroup": int(uid[1]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(role)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
    assert not any("hostPath" in volume for volume in spec["volumes"])


@pytest.mark.parametrize("role", ROLES)
def test_pod_has_one_core_and_time_to_drain(role: str) -> None:
    limits = container(role)["resources"]["limits"]
    assert container(role)["resources"]["requests"] == limits
    assert limits["cpu"] == "1"
    assert "ephemeral-storage" in limits
    needed = float(options()["stop-timeout"]) + 2 * FINAL_REPORT_S
    assert template(role)["spec"]["terminationGracePeriodSeconds"] > needed
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert container(role)["image"] == f"asr-load:{version}"
    # Only the master has a probe, and it kills nothing.
    probes = {name for name in container(role) if name.endswith("Probe")}
    assert probes == ({"readinessProbe"} if role == "master" else set())


@pytest.mark.parametrize("role", ROLES)
def test_pods_are_not_evicted_during_a_test(role: str) -> None:
    assert the("PodDisruptionBudget")["spec"]["maxUnavailable"] == 0
    assert template(role)["metadata"]["annotations"] == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}


@pytest.mark.parametrize("role", ROLES)
def test_image_entrypoint_is_not_replaced(role: str) -> None:
    """`command` would replace it: no token from a file, no calibration."""
    assert "command" not in container(role)
    calibrate = [one["value"] for one in container(role)["env"] if one["name"] == "CALIBRATE"]
    assert calibrate == (["1"] if role == "worker" else [])
    cache = re.search(r"XDG_CACHE_HOME=(\S+)", (CHECKOUT / "Dockerfile").read_text())
    assert cache
    assert (cache[1] in [mount["mountPath"] for mount in container(role)["volumeMounts"]]) == (role == "worker")


def expected_workers(rendered: list[dict[str, Any]]) -> tuple[str, int]:
    """The number of workers that the master waits for, and the number of workers."""
    (job,) = (part for part in rendered if part["kind"] == "Job")
    (workers,) = (part for part in rendered if part["kind"] == "Deployment")
    (master,) = job["spec"]["template"]["spec"]["containers"]
    (expected,) = (one["value"] for one in master["env"] if one["name"] == "LOCUST_EXPECT_WORKERS")
    return expected, workers["spec"]["replicas"]


def test_master_expects_as_many_workers_as_replicas() -> None:
    assert expected_workers(PARTS) == ("4", 4)
    (replacement,) = KUSTOMIZATION["replacements"]
    assert replacement["source"]["fieldPath"] == "spec.replicas"


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl, which has kustomize in it")
def test_kustomize_copies_the_replicas_and_hashes_the_options(tmp_path: Path) -> None:
    def render(text: str) -> list[dict[str, Any]]:
        (tmp_path / "kubernetes.yaml").write_text(FILE.read_text().replace("replicas: 4", "replicas: 7"))
        (tmp_path / "kustomization.yaml").write_text(text)
        done = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, text=True, check=True)
        return list(yaml.safe_load_all(done.stdout))

    text = (CHECKOUT / "kustomization.yaml").read_text()
    assert expected_workers(render(text)) == ("7", 7)
    hosts = [
        {
            one["valueFrom"]["configMapKeyRef"]["name"]
            for part in render(version)
            if part["kind"] in ("Job", "Deployment")
            for one in part["spec"]["template"]["spec"]["containers"][0]["env"]
            if one["name"] == "LOCUST_HOST"
        }
        for version in (text, text.replace("http://sglang:30000", "http://vllm:8000"))
    ]
    assert len(hosts[0]) == len(hosts[1]) == 1
    assert hosts[0] != hosts[1]


def test_kubernetes_never_restarts_a_test() -> None:
    assert the("Job")["spec"]["backoffLimit"] == 0
    assert template("master")["spec"]["restartPolicy"] == "Never"
    assert the("Deployment")["spec"]["strategy"] == {"type": "Recreate"}


class Pods:
    """The manifest's commands as processes. The Service's name becomes loopback, the mounted folder a temporary one,
    and the ports free ones. Nothing else is changed."""

    def __init__(self, folder: Path, host: str, **lines: str) -> None:
        self.folder = folder
        # As in the image: the checkout, with an empty folder where a volume is mounted.
        self.app = folder / "app"
        for name in ("scripts", "locustfiles", "asr_data", "locust.conf"):
            self.app.mkdir(exist_ok=True)
            (self.app / name).symlink_to(CHECKOUT / name)
        for name in ("config", "app/results", "tmp", "home"):
            (folder / name).mkdir()
        text = "".join(f"{name} = {value}\n" for name, value in (options() | lines).items())
        (folder / "config" / "locust.conf").write_text(text)
        self.port, web = free_port(), free_port()
        self.ui = f"http://127.0.0.1:{web}"
        port = str(self.port)
        self.env = {"LOCUST_MASTER_BIND_PORT": port, "LOCUST_MASTER_NODE_PORT": port, "LOCUST_WEB_PORT": str(web)}
        self.env |= {"LOCUST_HOST": host, "ASR_LOAD_FLEET_TOKEN": "a-token-of-the-secret"}
        self.env |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        self.before = self.files()

    def start(self, role: str) -> subprocess.Popen[str]:
        named = {"/config/locust.conf": str(self.folder / "config" / "locust.conf"), "asr-load-master": "127.0.0.1"}
        words = [named.get(word, word) for word in container(role)["args"]]
        return start(shlex.join(words), self.app, **self.env)

    def probe(self) -> bool:
        """The kubelet's probe: a connection without data."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S).close()
        except OSError:
            return False
        return True

    def workers(self) -> int:
        with urlopen(f"{self.ui}/stats/requests") as answer:
            return int(json.loads(answer.read())["worker_count"])

    def swarm(self, **form: str | int) -> None:
        with urlopen(f"{self.ui}/swarm", urlencode(form).encode()) as answer:
            started = json.loads(answer.read())
        assert started["success"], started

    def files(self) -> set[Path]:
        """All files outside of the mounted volumes."""
        volumes = [self.folder / "tmp", self.app / "results"]
        return {path for path in self.folder.rglob("*") if not any(path.is_relative_to(volume) for volume in volumes)}

    def records(self) -> list[dict[str, Any]]:
        """All records, after a check that they include every worker's final report."""
        (run,) = self.app.glob("results/*/run.json")
        records = [json.loads(line) for line in (run.parent / "records.jsonl").read_text().splitlines()]
        by_worker = Counter(record["worker"] for record in records)
        for worker in json.loads(run.read_text())["workers"]:
            assert worker["ended"]
            assert worker["started"] == worker["recorded"] == by_worker[worker["worker"]]
        return records


@pytest.mark.long
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_kubernetes_commands_run_and_deleting_pods_loses_no_stream(tmp_path: Path, stop: signal.Signals) -> None:
    processes: list[subprocess.Popen[str]] = []
    with serve(*SLOW) as host:
        pods = Pods(tmp_path, host=host)
        try:
            processes.append(pods.start("worker"))  # all start at the same time: a worker waits for its master
            processes.append(pods.start("master"))
            wait_until(pods.probe, "the master is ready")
            wait_until(lambda: answers(pods.ui), "the web UI")
            wait_until(lambda: pods.workers() == 1, "a worker")
            pods.swarm(user_count=4, spawn_rate=100, host=host)
            wait_until(lambda: running_streams(host) == 4, "four streams")
            for _ in range(100):
                assert pods.probe()
            assert pods.workers() == 1
            for process in processes:
                process.send_signal(stop)
            wait_until(lambda: all(process.poll() is not None for process in processes), "all have ended")
        finally:
            end(*processes)
    outcomes = Counter(record["outcome"] for record in pods.records())
    assert set(outcomes) == {"ok"}
    assert outcomes["ok"] >= 4
    assert pods.files() == pods.before  # so the root file system may be read-only


@pytest.mark.long
def test_job_without_web_ui_ends_with_the_test(tmp_path: Path) -> None:
    block = re.search(r"```ini\n(headless = true\n.*?)```", PAGE, re.DOTALL)
    assert block
    lines = dict(line.split(" = ") for line in block[1].splitlines())
    assert "expect-workers" not in lines  # it is copied from the replicas
    fewer = {"users": "2", "run-time": "2s"}
    assert fewer.keys() <= lines.keys()
    fewer["expect-workers"] = "1"
    processes: list[subprocess.Popen[str]] = []
    with serve(*FAST) as host:
        pods = Pods(tmp_path, host=host, **lines | fewer)
        try:
            processes = [pods.start(role) for role in ROLES]
            wait_until(lambda: all(process.poll() is not None for process in processes), "all have ended")
        finally:
            end(*processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert {record["outcome"] for record in pods.records()} == {"ok"}
    assert pods.files() == pods.before

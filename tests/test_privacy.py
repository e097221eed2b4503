"""The embedded server and a test look up no host name, contact no other machine, and write to no other folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import CHECKOUT
from harness.serving import running, wait_until

CALLS = "connect,sendto,sendmsg,sendmmsg,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,symlink"
ELSEWHERE = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')
WRITTEN = re.compile(r'(?:openat\(AT_FDCWD, |open\(|creat\(|mkdir\(|mkdirat\(AT_FDCWD, )"(/[^"]*)".*')
ENDED = re.compile(r"\+\+\+ (exited|killed) .*\+\+\+\n\Z")


def contacted(trace: str) -> set[str]:
    """Addresses off the loopback, and of name lookups (port 53), as host:port."""
    found = {(address, port) for port, address in ELSEWHERE.findall(trace) if port != "0"}
    return {
        f"{address}:{port}"
        for address, port in found
        if port == "53" or not address.startswith(("127.", "::1", "::ffff:127."))
    }


def written(trace: str, *allowed: Path) -> set[str]:
    """Files and folders created outside of the allowed ones."""
    made = {
        match[1]
        for match in WRITTEN.finditer(trace)
        if ("O_CREAT" in match[0] or match[0].startswith(("mkdir", "creat"))) and " = -1 " not in match[0]
    }
    places = [*map(str, allowed), "/dev/", "/proc/"]
    return {path for path in made if not path.startswith(tuple(places))}


def finished(file: Path) -> str:
    """The trace, once its last process has ended."""
    wait_until(lambda: ENDED.search(file.read_text()) is not None, f"the end of {file.name}")
    return file.read_text()


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.long
def test_server_and_test_contact_no_other_machine_and_write_nowhere_else(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def traced(name: str) -> list[str]:
        # -D: the traced process remains this one's child and receives its signals.
        return ["strace", "-D", "-f", "-q", "-e", f"trace={CALLS}", "-o", str(tmp_path / name)]

    with running("--threads", "1", on=traced("server.trace")) as (url, _):
        test = [*traced("test.trace"), sys.executable, "-m", "locust", "--headless", "--only-summary"]
        words = ["-u", "1", "--requests", "2", "--host", url, "--data", str(clips), "--results", str(tmp_path / "run")]
        done = subprocess.run([*test, *words], cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("server.trace", "test.trace"):
        trace = finished(tmp_path / name)
        assert contacted(trace) == set(), name
        assert written(trace, tmp_path) == set(), name
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_contacted_finds_lookups_and_other_hosts() -> None:
    """These are traces that the test above must not contain."""
    lines = (
        '12 connect(5, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.53")}, 16) = 0\n'
        '12 connect(5, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.7")}, 16) = 0\n'
        '12 connect(5, {sa_family=AF_INET, sin_port=htons(8080), sin_addr=inet_addr("127.0.0.1")}, 16) = 0\n'
    )
    assert contacted(lines) == {"127.0.0.53:53", "192.0.2.7:443"}


def test_written_finds_files_outside_of_the_allowed_folders() -> None:
    lines = (
        '12 mkdir("/home/a/.cache", 0700) = 0\n'
        '12 openat(AT_FDCWD, "/home/a/.cache/id", O_WRONLY|O_CREAT, 0600) = 7\n'
        '12 openat(AT_FDCWD, "/usr/lib/x.so", O_RDONLY|O_CLOEXEC) = 3\n'
        '12 openat(AT_FDCWD, "/out/run.json", O_WRONLY|O_CREAT, 0600) = 7\n'
    )
    assert written(lines, Path("/out")) == {"/home/a/.cache", "/home/a/.cache/id"}

"""The C parts: compiled from the current sources, and run under sanitizers, compared with the Python versions."""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gevent.event import Event

from asr_load.http import socket_reader
from asr_load.http.collector import UNTIL_CLOSE
from conftest import CHECKOUT
from harness.patience import PATIENCE_S
from harness.socket_readers import pair, settle

COMPILER = shutil.which("cc") or shutil.which("gcc")
MODULES = ("asr_load.http._socket_reader", "asr_load.stream._events", "asr_server._chunk_sender")
SOURCES = {module: CHECKOUT / f"{module.replace('.', '/')}.c" for module in MODULES}
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
FUZZ_S = float(os.environ.get("FUZZ_S", "10"))
"""Duration of the fuzz test. `make test-all` sets five minutes."""

if COMPILER is None:
    pytest.importorskip("asr_load.http._socket_reader", reason="no C compiler here")
from asr_load.http import _socket_reader  # noqa: E402

pytestmark = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="no C compiler here, or no Linux"
)


@pytest.mark.parametrize("module", MODULES)
def test_extensions_are_compiled_from_the_current_sources(module: str) -> None:
    """The extensions are optional: pip silently omits one that does not compile."""
    compiled = importlib.import_module(module).__file__
    assert compiled is not None
    newest = max(file.stat().st_mtime for file in (SOURCES[module], *(CHECKOUT / "native").glob("*.h")))
    assert Path(compiled).stat().st_mtime >= newest, "older than its source: make setup"


def build(folder: Path, *flags: str) -> None:
    """Copy the packages and tests, and compile the extensions with these flags."""
    for name in ("asr_load", "asr_server", "tests", "locustfiles", "scripts"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (folder / "pyproject.toml").write_text((CHECKOUT / "pyproject.toml").read_text())
    for module, source in SOURCES.items():
        made = folder / f"{module.replace('.', '/')}{SUFFIX}"
        include = ["-I", sysconfig.get_path("include"), "-I", str(CHECKOUT / "native")]
        words = [str(COMPILER), "-shared", "-fPIC", "-std=c11", "-g", "-Wall", "-Wextra", "-Werror", *flags]
        subprocess.run([*words, *include, str(source), "-o", str(made), "-lpthread"], check=True)


def library(name: str) -> str:
    """The library of a sanitizer, which an interpreter built without it must preload."""
    command = [str(COMPILER), f"-print-file-name={name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if found == name:
        pytest.skip(f"{name} is not here")
    return found


TESTS = (
    "tests/test_socket_reader.py",
    "tests/test_collector.py",
    "tests/test_response.py",
    "tests/test_self_check.py",
    "tests/test_decryption.py",
    "tests/test_events.py",
    "tests/test_chunk_sender.py",
)
SANITIZERS = {
    "addresses": (["-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"], ["libasan.so", "libubsan.so"]),
    "threads": (["-O1", "-fsanitize=thread"], ["libtsan.so"]),
}
REPORTS = ("AddressSanitizer", "runtime error", "ThreadSanitizer")


@pytest.mark.long
@pytest.mark.parametrize("kind", SANITIZERS)
@pytest.mark.parametrize("what", ["tests", "fuzz"])
def test_c_code_under_sanitizers(tmp_path: Path, kind: str, what: str) -> None:
    flags, libraries = SANITIZERS[kind]
    preload = ":".join(map(library, libraries))
    build(tmp_path, *flags)
    log = f"log_path={tmp_path}/report"
    environment = {
        **os.environ,
        "LD_PRELOAD": preload,
        "PYTHONPATH": str(tmp_path),
        "PYTHONMALLOC": "malloc" if kind == "addresses" else "default",
        # The interpreter keeps some memory until its end; that is not a leak of ours.
        "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=0:{log}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:{log}",
        "TSAN_OPTIONS": f"exitcode=0:report_signal_unsafe=0:{log}",
        "LOCUST_SKIP_MONKEY_PATCH": "1",
    }
    run = (
        ["-m", "pytest", "-p", "no:cacheprovider", "-q", *TESTS] if what == "tests" else ["tests/fuzz.py", str(FUZZ_S)]
    )
    done = subprocess.run(
        [sys.executable, *run],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=20 * PATIENCE_S,
    )
    reports = "".join(file.read_text(errors="replace") for file in tmp_path.glob("report*"))
    assert not any(word in reports + done.stderr for word in REPORTS), reports[-4000:] + done.stderr[-2000:]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@contextmanager
def in_child() -> Iterator[bool]:
    """Run the block twice, the second time in a forked process (True), which must end."""
    child = os.fork()
    if child:
        until = time.monotonic() + PATIENCE_S
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                pytest.fail("the child hangs")
            time.sleep(0.01)
        assert ended[1] == 0, f"the child ended with {os.waitstatus_to_exitcode(ended[1])}"
        yield False
        return
    code = 1
    try:
        yield True
        code = 0
    finally:
        os._exit(code)


@pytest.mark.filterwarnings("ignore:This process.*use of fork")
def test_forked_child_cannot_use_its_parents_reader() -> None:
    """The child has no thread for it, and shares epoll and the eventfds with the parent."""
    thread = _socket_reader.ReadingThread()
    here, there = pair()
    with here, there:
        come = Event()
        made = thread.read_from(here.fileno(), come)
        with in_child() as child:
            if child:
                with pytest.raises(RuntimeError, match="in the process that made it"):
                    made.want(0)
                with pytest.raises(RuntimeError, match="in the process that made it"):
                    _ = made.status
                made.close()
                thread.close()
                del made, thread
        there.sendall(b"after the fork")
        settle(lambda: made.head(0) == b"after the fork")
        made.close()
    thread.close()


@pytest.mark.filterwarnings("ignore:This process.*use of fork")
def test_forked_child_can_create_a_reader() -> None:
    """Locust's workers do this, whatever was read before the fork."""
    assert socket_reader.compiled is not None
    for _ in range(2):
        here, there = pair()
        with here, there:
            made = socket_reader.compiled(here.fileno(), Event())
            there.sendall(b"x")
            settle(lambda made=made: made.head(0) == b"x")  # type: ignore[misc]
            with in_child() as child:
                if child:
                    mine, other = pair()
                    own = socket_reader.compiled(mine.fileno(), Event())
                    other.sendall(b"y")
                    settle(lambda own=own: own.head(0) == b"y")  # type: ignore[misc]
            made.close()


def open_files() -> set[int]:
    return {int(file.name) for file in Path("/proc/self/fd").iterdir() if file.exists()}


def test_reader_descriptors_are_not_inherited() -> None:
    thread = _socket_reader.ReadingThread()
    here, there = pair()
    with here, there:
        before = open_files()
        made = thread.read_from(here.fileno(), Event())
        (own,) = open_files() - before
        assert not os.get_inheritable(own)
        made.close()
    thread.close()


def test_invalid_descriptor_raises_an_os_error() -> None:
    thread = _socket_reader.ReadingThread()
    with pytest.raises(OSError, match="Bad file descriptor"):
        thread.read_from(10_000_000, Event())
    with (CHECKOUT / "README.md").open() as file, pytest.raises(PermissionError):
        thread.read_from(
            file.fileno(), Event()
        )  # epoll accepts no plain files: the error must be epoll's, not a later one
    thread.close()


def test_large_response_is_read_piece_by_piece() -> None:
    """It is read to its last byte while others query its status."""
    thread = _socket_reader.ReadingThread()
    here, there = pair()
    with here, there:
        made = thread.read_from(here.fileno(), Event())
        made.begin_body(0, UNTIL_CLOSE)
        there.setblocking(True)
        sent = 0
        while sent < 8 << 20:
            sent += there.send(bytes(1 << 20))
            assert made.status == "running"
        there.shutdown(socket.SHUT_WR)
        settle(lambda: made.status == "complete")
        assert len(made.collected()[0]) == sent
        made.close()
    thread.close()


def test_out_of_memory_is_reported_as_such() -> None:
    """It was once reported as "too long"."""
    code = """
import resource, socket, sys, time
from asr_load.http import _socket_reader
thread = _socket_reader.ReadingThread()
server = socket.create_server(("127.0.0.1", 0))
here = socket.create_connection(server.getsockname())
there, _ = server.accept()
reader = thread.read_from(here.fileno(), object())
reader.begin_body(0, -2)
part = bytes(1 << 20)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (10 << 20), used + (10 << 20)))
there.setblocking(False)
until = time.monotonic() + 60
while reader.status == "running" and time.monotonic() < until:
    try:
        there.send(part)
    except BlockingIOError:
        time.sleep(0.005)
print(reader.status, reader.failure.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.stdout == "failed 12\n", (done.stdout, done.stderr)


def test_nice_value_of_the_reading_thread_can_be_left_unchanged() -> None:
    """With sufficient rights, the reading thread raises its priority."""
    assert resource.getrlimit(resource.RLIMIT_NICE)
    code = "import time; from asr_load.http import _socket_reader; r = _socket_reader.ReadingThread()\n"
    code += "while not r.lags(): time.sleep(0.01)\nprint(r.nice)"  # at its first tick it has its final priority
    nice = os.nice(0)
    for word, wanted in (("0", {nice}), ("", {nice, -15})):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE_S, check=True,
            env={**os.environ, "ASR_LOAD_NICE": word},
        )  # fmt: skip
        assert int(done.stdout) in wanted
    if os.geteuid() == 0:
        assert int(done.stdout) == -15

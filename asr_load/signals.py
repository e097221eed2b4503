"""Handle SIGINT (Ctrl-C) and SIGTERM from a command's first line to its last: one line, exit code 130 or 143, no trace.

Python raises KeyboardInterrupt wherever it happens to be: in an import, in a callback that prints it and continues, in
the middle of a record. Here a signal calls one function instead. By default that is `leave`; code that has something to
finish sets another with `on_signal`, or asks for an exception with `raising`.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

STOPS = (signal.SIGINT, signal.SIGTERM)

CHILDREN_S = 20.0
"""Seconds between SIGTERM and SIGKILL for forked processes."""

_LOOK_S = 0.02

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

BEFORE_TEST = " before any test had begun"

Act = Callable[[int], object]


class Interrupted(KeyboardInterrupt):
    """A signal that arrived within `raising`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class _Process:
    """This process's signal handling and its forked children."""

    def __init__(self) -> None:
        self.act: Act | None = None
        """The function that `on_signal` set; None stands for `leave`."""
        self.where = ""
        """Text that `leave` adds to its line."""
        self.children: list[int] = []
        """Forked processes that must not outlive this one."""
        self.parent: int | None = None
        """The process that forked this one; None unless this is a child."""
        self.held = False
        """Whether signals are queued in `waiting`: the signal mask does not cover other threads, whose signals Python
        handles in this one."""
        self.waiting: list[int] = []
        self.shared: mmap.mmap | None = None
        """One byte shared by a parent and its children: the number of the signal that the parent received, or 0."""


_process = _Process()


def catch() -> None:
    """Handle SIGINT and SIGTERM as set by `on_signal`, by default with `leave`. Another call restores the handlers.
    Delivers signals that were held across an exec."""
    for number in STOPS:
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            signal.signal(number, _handle)
    _release()


def catch_before_test() -> None:
    """Handle both signals with `leave` in a process of Locust, until its test begins."""
    catch()
    on_signal(leave, BEFORE_TEST)


def ignore() -> None:
    """Ignore both signals from now on, in a process whose parent handles them."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    _release()


def caught() -> bool:
    """Whether the handlers of `catch` are in place."""
    return all(signal.getsignal(number) is _handle for number in STOPS)


@atexit.register
def _ignore_at_the_end() -> None:
    """Ignore signals at exit: Python restores the default handlers, and a signal would kill a command that is done."""
    if caught():
        ignore()


def _handle(number: int, _: FrameType | None) -> None:
    if _process.held:
        _process.waiting.append(number)
    else:
        (_process.act or leave)(number)


def on_signal(act: Act | None, where: str = "") -> Act | None:
    """Call `act` with the signal's number from now on; None stands for `leave`. Returns the previous function.

    `act` runs between two bytecodes of any code, so it must be short and must not raise. `leave` adds `where` to its
    line.
    """
    before, _process.act, _process.where = _process.act, act, where
    return before


def leave(number: int) -> NoReturn:
    """End this process and its children immediately, with one line and exit code 128 + number. Atomic writes need no
    cleanup."""
    _hold()
    try:
        say(f"stopped{_process.where} ({signal.Signals(number).name})")
        if _process.shared is not None and not is_child():
            _process.shared[0] = number
        end_children()
        sys.stdout.flush()  # raises if the signal came during a print
    finally:
        os._exit(exit_code(number))


def exit_code(number: int) -> int:
    """The exit code of a command that a signal ended, as shells report it."""
    if is_child() and _process.shared is not None and _process.shared[0]:
        number = _process.shared[0]  # a parent sends its children SIGTERM, whichever signal it received
    return 128 + number


def say(line: str) -> None:
    """Print a line to standard error in one write, even during another print. Children leave it to their parent."""
    if not is_child():
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Raise Interrupted on a signal within this block, so that it can clean up. A second signal calls `leave`. The code
    that catches Interrupted prints the line."""

    def act(number: int) -> NoReturn:
        on_signal(leave)
        raise Interrupted(number)

    before = on_signal(act)
    try:
        yield
    finally:
        on_signal(before)


def _hold() -> None:
    _process.held = True
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    _process.held = False
    while _process.waiting:
        _handle(_process.waiting.pop(0), None)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold signals within this block, while it starts and registers a process or execs another program. A new program
    inherits the mask and must call `catch`."""
    _hold()
    try:
        yield
    finally:
        _release()


def fork_child(fork: Callable[[], int]) -> int:
    """Call `fork` to create a child that ends with this process. Returns what `fork` returns."""
    if _process.shared is None:
        _process.shared = mmap.mmap(-1, 1)
    with held():
        parent = os.getpid()
        pid = fork()
        if pid:
            if not _process.children:
                atexit.register(end_children)
            _process.children.append(pid)
        else:
            _process.parent, _process.children = parent, []
            _process.act = _leave_with_parent
            atexit.unregister(end_children)
            _hear_of_parents_end()
    return pid


def _hear_of_parents_end() -> None:
    """Let Linux send this process SIGTERM when its parent ends, even by SIGKILL."""
    import ctypes  # few processes need it

    with contextlib.suppress(OSError, AttributeError):  # other systems have no prctl
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if is_orphan():  # the parent ended before the call
        os.kill(os.getpid(), signal.SIGTERM)


def _leave_with_parent(number: int) -> None:
    # A terminal sends Ctrl-C to the parent too, which ends its children in order.
    if number != signal.SIGINT or is_orphan():
        leave(number)


def is_child() -> bool:
    """Whether `fork_child` made this process."""
    return _process.parent is not None


def is_orphan() -> bool:
    """Whether the process that forked this one has ended."""
    return is_child() and os.getppid() != _process.parent


def pass_on(number: int) -> None:
    """Tell the children to end: in order on the first signal, immediately on a second SIGINT."""
    shared = _process.shared
    assert shared is not None
    again, shared[0] = bool(shared[0]), shared[0] or number
    if not again:
        say(f"{signal.Signals(number).name}: stopping the workers of this command")
    for pid in _process.children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT if again and number == signal.SIGINT else signal.SIGTERM)


def end_children() -> None:
    """End the children that still run, and wait for them."""
    if not _process.children:
        return
    # gevent's versions would wait for its loop, which may never run again.
    sleep, wait = _original("time", "sleep", time.sleep), _original("os", "waitpid", os.waitpid)
    until, terminated = time.monotonic() + CHILDREN_S, False
    while children := [pid for pid in _process.children if _is_there(pid, wait)]:
        late = time.monotonic() > until
        for pid in children if late or not terminated else ():
            os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)  # not reaped yet, so its pid is not reused
        terminated = True
        sleep(_LOOK_S)


def _original(module: str, name: str, now: Callable[..., object]) -> Callable[..., object]:
    monkey: Any = sys.modules.get("gevent.monkey")
    original: Callable[..., object] = now if monkey is None else monkey.get_original(module, name)
    return original


def _is_there(pid: int, wait: Callable[..., object]) -> bool:
    with contextlib.suppress(ChildProcessError):  # it was already reaped
        return wait(pid, os.WNOHANG) == (0, 0)
    return False

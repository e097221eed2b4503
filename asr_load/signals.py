"""SIGINT (Ctrl-C) and SIGTERM, from a command's first line to its last: one line, exit code 130 or 143, no stack trace.

Python raises KeyboardInterrupt in whatever happens to run: an import, a callback that prints it and goes on, a user in
the middle of a record. Here a signal calls one function instead. At first that is `leave`; a part of a command that has
something to finish sets another with `on_signal`, or asks for an exception with `raising`.
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
"""How long forked processes have to end by themselves after SIGTERM, before SIGKILL."""

_LOOK_S = 0.02

_PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""

Act = Callable[[int], object]


class Interrupted(KeyboardInterrupt):
    """A signal, within `raising`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class _Process:
    """What this process knows of signals."""

    def __init__(self) -> None:
        self.act: Act | None = None
        """What `on_signal` set; None: `leave`."""
        self.where = ""
        """What `leave` adds to its line."""
        self.children: list[int] = []
        """Forked processes that must not outlive this one."""
        self.parent: int | None = None
        """The process that forked this one, where this one is a child."""
        self.held = False
        """Whether signals wait in `waiting`: a mask does not keep them from other threads, for which this one
        answers."""
        self.waiting: list[int] = []
        self.shared: mmap.mmap | None = None
        """One byte that a parent and its children share: the number of the signal that the parent was sent, or 0."""


_process = _Process()


def catch() -> None:
    """Let SIGINT and SIGTERM do what `on_signal` says; before its first call, `leave`. Calling it again puts the
    handlers back in place. Signals that an exec held are delivered now."""
    for number in STOPS:
        with contextlib.suppress(ValueError):  # only the main thread may
            signal.signal(number, _handle)
    _release()


def ignore() -> None:
    """Ignore both signals from now on, as a process does whose parent answers them."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    _release()


def caught() -> bool:
    """Whether `catch` has set the handlers that are in place."""
    return all(signal.getsignal(number) is _handle for number in STOPS)


@atexit.register
def _ignore_at_the_end() -> None:
    """Python restores the default as it ends, and a signal would kill a command that has done all that it had to."""
    if caught():
        ignore()


def _handle(number: int, _: FrameType | None) -> None:
    if _process.held:
        _process.waiting.append(number)
    else:
        (_process.act or leave)(number)


def on_signal(act: Act | None, where: str = "") -> Act | None:
    """Call `act` with a signal's number from now on, between two bytecodes of whatever runs: it must be short and must
    not raise. None stands for `leave`. Returns the one before. `where` is what `leave` adds to its line."""
    before, _process.act, _process.where = _process.act, act, where
    return before


def leave(number: int) -> NoReturn:
    """End this process now, and its children: one line, exit code 128 + number. Files that are written atomically need
    nothing else."""
    _hold()
    try:
        say(f"stopped{_process.where} ({signal.Signals(number).name})")
        if _process.shared is not None and not is_child():
            _process.shared[0] = number
        end_children()
        sys.stdout.flush()  # which raises where the signal came within a print
    finally:
        os._exit(exit_code(number))


def exit_code(number: int) -> int:
    """The exit code of a command that a signal ended before it had a result, as shells report it."""
    if is_child() and _process.shared is not None and _process.shared[0]:
        number = _process.shared[0]  # children are told to end by SIGTERM, whatever their parent was sent
    return 128 + number


def say(line: str) -> None:
    """Print a line to standard error, in one piece and even within another print. Children leave that to their
    parent."""
    if not is_child():
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Raise Interrupted in this block, which cleans up. A second signal leaves at once. Whoever catches Interrupted
    prints the line."""

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
    """Keep signals waiting in this block, in which a process is started and noted, or this one becomes another. The new
    program inherits that: it must call `catch`."""
    _hold()
    try:
        yield
    finally:
        _release()


def fork_child(fork: Callable[[], int]) -> int:
    """Fork, by a function that does so, into a child that ends with this process. Returns what `fork` returns."""
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
    """Let Linux send this process SIGTERM when the one that forked it ends, as SIGKILL ends it."""
    import ctypes  # few processes need it

    with contextlib.suppress(OSError, AttributeError):  # of other systems
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if is_orphan():  # since before that
        os.kill(os.getpid(), signal.SIGTERM)


def _leave_with_parent(number: int) -> None:
    # The terminal gives Ctrl-C to the parent too, which ends its children in order.
    if number != signal.SIGINT or is_orphan():
        leave(number)


def is_child() -> bool:
    """Whether `fork_child` made this process."""
    return _process.parent is not None


def is_orphan() -> bool:
    """Whether the process that forked this one is gone."""
    return is_child() and os.getppid() != _process.parent


def pass_on(number: int) -> None:
    """Tell the children to end: with the first signal in order, with another SIGINT at once."""
    shared = _process.shared
    assert shared is not None
    again, shared[0] = bool(shared[0]), shared[0] or number
    if not again:
        say(f"{signal.Signals(number).name}: the workers of this command end")
    for pid in _process.children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT if again and number == signal.SIGINT else signal.SIGTERM)


def end_children() -> None:
    """End the children that are still there, and wait for them."""
    if not _process.children:
        return
    # gevent's own would wait for its loop, which may never run again.
    sleep, wait = _original("time", "sleep", time.sleep), _original("os", "waitpid", os.waitpid)
    until, told = time.monotonic() + CHILDREN_S, False
    while children := [pid for pid in _process.children if _is_there(pid, wait)]:
        late = time.monotonic() > until
        for pid in children if late or not told else ():
            os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)  # not waited for, so nobody else has its number
        told = True
        sleep(_LOOK_S)


def _original(module: str, name: str, now: Callable[..., object]) -> Callable[..., object]:
    monkey: Any = sys.modules.get("gevent.monkey")
    original: Callable[..., object] = now if monkey is None else monkey.get_original(module, name)
    return original


def _is_there(pid: int, wait: Callable[..., object]) -> bool:
    with contextlib.suppress(ChildProcessError):  # it was waited for before
        return wait(pid, os.WNOHANG) == (0, 0)
    return False

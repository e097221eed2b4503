"""The check of the socket readers before a test."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from asr_load.http import socket_reader
from conftest import CHECKOUT

CHOICES = """
from gevent import monkey; monkey.patch_all()
import logging
from asr_load.errors import InputError
from asr_load.http import self_check, socket_reader
logging.basicConfig(format="%(levelname)s %(message)s")

class Deaf(socket_reader.PythonReader):
    def collected(self):
        body, stamps, ends = super().collected()
        return body[: ends[1]], stamps[:2], ends[:2]

class Late(socket_reader.PythonReader):
    def collected(self):
        body, stamps, ends = super().collected()
        return body, [stamps[-1]] * len(stamps), ends

class Wrong(socket_reader.PythonReader):
    def collected(self):
        body, stamps, ends = super().collected()
        return body.replace(b"two", b"owt"), stamps, ends

attempts = 0
mistake = self_check._mistake
def counted(factory):
    global attempts
    attempts += 1
    return mistake(factory)
self_check._mistake = counted

def chosen(reader):
    try:
        return self_check.choose(reader)[0]
    except InputError as error:
        return f"none: {error}"
print(chosen("auto"), chosen("compiled"), chosen("python"))
socket_reader.compiled = None
print(chosen("auto"), chosen("compiled"))
socket_reader.PythonReader = Deaf
print(chosen("auto"))
socket_reader.PythonReader = Late
print(chosen("python"))
attempts = 0
socket_reader.PythonReader = Wrong
print(chosen("python"))
print(attempts)
"""


@pytest.mark.skipif(socket_reader.compiled is None, reason="no compiled reader here: no C compiler at setup")
def test_best_reader_is_chosen_and_one_that_fails_its_check_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", CHOICES], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    chosen = done.stdout.splitlines()
    assert chosen[:2] == ["compiled compiled python", "python python"]
    assert all(line.startswith("none: reader python: its check failed") for line in chosen[2:5])
    assert all(line.endswith("; no reader works on this machine, so nothing can be measured") for line in chosen[2:5])
    assert chosen[5] == "1"
    first, second, third, fourth = done.stderr.splitlines()
    assert first == "WARNING reader compiled: not compiled on this machine"
    assert second.startswith("WARNING reader python: its check failed 5 times: outcome 'cut' (")
    assert re.match(r"WARNING reader python: its check failed 5 times: event 1 is stamped .* after it was read", third)
    assert fourth == "WARNING reader python: its check failed: text 'Grüße owt!' instead of 'Grüße two!'"


DISTURBED = """
import sys
from gevent import monkey; monkey.patch_all()
import gevent
from asr_load.errors import InputError
from asr_load.http import self_check, socket_reader
from asr_load.http.transport import Timeouts

how, disturbed = sys.argv[1], int(sys.argv[2])
mistake, serve, attempts = self_check._mistake, self_check._serve, 0

def attempt(factory):
    global attempts
    attempts += 1
    self_check._LIMITS = Timeouts(60, 0.1 if how == "late" and attempts <= disturbed else 60, 60)
    return mistake(factory)

def disturb(user_connection, sent, connection, address):
    if attempts > disturbed:
        return serve(user_connection, sent, connection, address)
    connection.recv(1 << 20)
    if how == "dropped":
        return connection.close()
    gevent.sleep(60)

self_check._mistake, self_check._serve = attempt, disturb
try:
    print(self_check.choose("python")[0])
except InputError as error:
    print(f"error: {error}")
"""


@pytest.mark.parametrize("how", ["late", "dropped"])
@pytest.mark.parametrize(
    ("attempts", "said"), [(1, "python"), (4, "python"), (5, "error: reader python: its check was inconclusive in 5")]
)
def test_reader_check_disturbed_by_the_machine_is_repeated(how: str, attempts: int, said: str) -> None:
    command = [sys.executable, "-c", DISTURBED, how, str(attempts)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(said), done
    assert done.stderr == ""

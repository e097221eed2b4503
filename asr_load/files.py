"""Atomic writes, regular files, locked folders, and JSON files of a known type."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader, FileIO
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from asr_load.decode import Malformed, decode
from asr_load.errors import InputError

T = TypeVar("T")

BUFFER_BYTES = 1 << 20
"""Buffer size for reading a file."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all, whenever the process ends. Raises OSError and leaves no draft behind."""
    # Nobody can guess the draft's name and plant a link there; mode "x" follows no links.
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with draft.open("xb") as file:
            file.write(data)
        draft.replace(path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise


def open_regular(path: Path, *, writable: bool = False) -> BufferedReader | BufferedRandom:
    """Open a regular file: pipes and devices may never end. Does not follow a link to write. Raises OSError."""
    flags = os.O_RDWR | os.O_NOFOLLOW if writable else os.O_RDONLY
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if writable:
        return BufferedRandom(FileIO(descriptor, "r+"), BUFFER_BYTES)
    return BufferedReader(FileIO(descriptor), BUFFER_BYTES)


def encode_json(value: Any) -> bytes:
    """Encode a struct as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def read_json(path: Path, type: type[T], missing: str, writer: str) -> T:
    """Read a JSON file. Raises InputError: `missing` says what an unreadable file means, `writer` names the command
    that writes such files."""
    try:
        with open_regular(path) as file:
            return decode(file.read(), type)
    except OSError as error:
        raise InputError(f"{missing}: {path.name} cannot be read ({error.strerror})") from error
    except Malformed as error:
        raise InputError(f"{path} is not the output of {writer} ({error})") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold an advisory lock on an existing folder within the block; it ends with the process. Raises BlockingIOError if
    another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)

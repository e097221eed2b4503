"""Files that are there as a whole or not at all, and JSON that is what it should be."""

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

READ_BYTES = 1 << 20
"""Of a file, at once."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all, whenever the process ends. Raises OSError, after which
    there is no draft either."""
    # A name that nobody could know and make a link of; "x" follows none.
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
    """Open a file of bytes: no pipe or device, which may have no end, and none to write to through a link. Raises
    OSError."""
    flags = os.O_RDWR | os.O_NOFOLLOW if writable else os.O_RDONLY
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if writable:
        return BufferedRandom(FileIO(descriptor, "r+"), READ_BYTES)
    return BufferedReader(FileIO(descriptor), READ_BYTES)


def encode_json(value: Any) -> bytes:
    """A struct as JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def read_json(path: Path, type: type[T], missing: str, writer: str) -> T:
    """What a JSON file holds. Raises InputError: `missing` says what its absence means, `writer` who writes such."""
    try:
        with open_regular(path) as file:
            return decode(file.read(), type)
    except OSError as error:
        raise InputError(f"{missing}: {path.name} cannot be read ({error.strerror})") from error
    except Malformed as error:
        raise InputError(f"{path} is not what {writer} writes ({error})") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make an existing folder this process's for the time of the block, if all others ask too. It is free again when
    the process ends, however it does. Raises BlockingIOError where another has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)

"""Files that are there as a whole or not at all, and JSON that is what it should be."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from asr_load.errors import InputError

T = TypeVar("T")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all, whenever the process ends."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(data)
    draft.replace(path)


def encode_json(value: Any) -> bytes:
    """A struct as JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def read_json(path: Path, type: type[T], missing: str, writer: str) -> T:
    """What a JSON file holds. Raises InputError: `missing` says what its absence means, `writer` who writes such."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=type)
    except OSError as error:
        raise InputError(f"{missing}: {path.name} cannot be read ({error.strerror})") from error
    except msgspec.DecodeError as error:
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

"""Files of records: written by a test, one line per record, and read afterwards."""

from __future__ import annotations

import fcntl
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from asr_load.errors import InputError
from asr_load.files import open_regular
from asr_load.stream.record import Record, decode_record, encode_record

RECORDS = "records.jsonl"
WORKER_RECORDS = "worker-{:03d}.jsonl"
"""A worker's own file of records, in addition to the master's, in case one of the two dies."""

LONGEST_LINE = 256 << 20
"""Maximum bytes of a record's line: more than the longest texts take, fully escaped."""


class RecordFile:
    """A file with one line per record, on disk as soon as `write` returns. If the disk is full, lines are kept and
    retried with the next one and at the end, when the file is cut to complete lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("wb", buffering=0)
        _lock(self._file.fileno())
        self._left = b""
        self._written = self._whole = 0
        """Bytes in the file, and bytes of its complete lines."""
        self.trouble = ""
        """The error, if a line could not be written."""

    def write(self, record: Record) -> bytes:
        """Write a record. Returns its line, so that the caller can forward it."""
        line = encode_record(record)
        self.write_line(line)
        return line

    def write_line(self, line: bytes) -> None:
        """Write an encoded record."""
        self._put(line + b"\n")

    def _put(self, line: bytes) -> None:
        self._left += line
        try:
            while self._left:
                count = self._file.write(self._left)
                if newline := self._left.rfind(b"\n", 0, count) + 1:
                    self._whole = self._written + newline
                self._written += count
                self._left = self._left[count:]
        except OSError as error:
            self.trouble = error.strerror or str(error)

    @property
    def unwritten(self) -> int:
        """Number of lines that are not on disk."""
        return self._left.count(b"\n")

    def close(self) -> None:
        """Try to write the remaining lines, and close the file."""
        self._put(b"")
        if self._left:
            self._file.truncate(self._whole)
        self._file.close()


def read_records(
    folder: Path,
    refused: Counter[tuple[int | None, str]] | None = None,
    unreported: dict[int, list[bytes]] | None = None,
) -> Iterator[Record]:
    """Yield the records of a run, each once: the master's, and those in workers' files that never reached the master.

    The lines of the latter are also added to `unreported`, by worker. Skips an incomplete last line. Skips malformed
    lines and implausible records, and counts them in `refused`, by worker (None: the master) and reason. Raises
    InputError, also if the master's file has lines but no record.
    """
    refused = Counter() if refused is None else refused
    workers = {int(found[1]): path for path in folder.glob("*") if (found := _WORKERS_FILE.fullmatch(path.name))}
    paths: list[tuple[int | None, Path]] = [(None, folder / RECORDS), *sorted(workers.items())]
    seen: set[tuple[int, int, float]] = set()

    def is_new(record: Record) -> bool:
        key, known = (record.worker, record.user, record.started_at), len(seen)
        seen.add(key)
        return len(seen) > known

    for worker, path in paths:
        valid, first_error = 0, ""
        for number, line in enumerate(_lines(path), 1):
            try:
                record = decode_record(line)
                if worker not in (None, record.worker):
                    raise ValueError("it belongs to another worker")
            except ValueError as error:
                refused[worker, str(error)] += 1
                first_error = first_error or f"{path}, line {number}: not a record ({error})"
                continue
            valid += 1
            if not workers or is_new(record):
                if worker is not None and unreported is not None:
                    unreported.setdefault(worker, []).append(encode_record(record))
                yield record
        if worker is None and first_error and not valid:
            raise InputError(first_error)


_WORKERS_FILE = re.compile(r"worker-([0-9]{3,9})\.jsonl")
"""Matches the names made by WORKER_RECORDS."""


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
                yield line
    except OSError as error:
        raise InputError(f"{path.parent} holds no run: {path.name} cannot be read ({error.strerror})") from error
    if len(line) == LONGEST_LINE:
        raise InputError(f"{path} has a line of more than {LONGEST_LINE >> 20} MiB, which is not a record")


def append_lines(path: Path, lines: Iterable[bytes]) -> bool:
    """Append lines of records after the last complete line of a file. Returns False, without appending, while a test
    writes to the file. Raises OSError."""
    with open_regular(path, writable=True) as file:
        if not _lock(file.fileno()):
            return False
        end = whole = sum(len(line) for line in file if line.endswith(b"\n"))
        left = b"".join(line + b"\n" for line in lines)
        try:
            while left:
                count = os.pwrite(file.fileno(), left, end)
                left, end = left[count:], end + count
        except OSError:
            end = whole
            raise
        finally:
            os.ftruncate(file.fileno(), end)
    return True


def _lock(descriptor: int) -> bool:
    """Take an advisory lock on an open file until it is closed. Returns whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

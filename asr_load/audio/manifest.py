"""Tables of recordings as people have them: JSON lines, a JSON array, csv and its kin, a parquet file of metadata."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asr_load.audio.columns import names_audio
from asr_load.decode import Malformed, decode
from asr_load.errors import InputError

LINES, TABLES, JSON = (".jsonl", ".ndjson"), (".csv", ".tsv"), ".json"
SUFFIXES = (*LINES, *TABLES)
"""Of files that are manifests by their name. A .json may be one (NeMo calls its JSON lines so): its content decides. So
may a metadata.parquet beside audio, as `datasets` has it."""

LONGEST_ROW = 1 << 20
"""Bytes of a row that is looked at to find out whether a .json file is a manifest."""

DELIMITERS = ",\t;|"
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def is_manifest(file: Path) -> bool:
    """Whether a file is a manifest by its name or, for one in .json, by its first row."""
    suffix = file.suffix.lower()
    if suffix == JSON:
        with file.open("rb") as data:
            beginning = data.read(LONGEST_ROW).lstrip()
        try:
            first = decode(beginning.split(b"\n", 1)[0])
        except Malformed:
            # An array over several lines: it is read as a whole, as it will be then.
            if not beginning.startswith(b"["):
                return False
            try:
                first = decode(file.read_bytes())
            except Malformed:
                return False
        row = first[0] if isinstance(first, list) and first else first
        return isinstance(row, dict) and names_audio(row)
    return suffix in SUFFIXES or file.name.lower() == "metadata.parquet"


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a manifest. Raises InputError if the file is not a manifest or has no rows."""
    try:
        if file.suffix.lower() == ".parquet":
            rows = _parquet(file)
        elif file.suffix.lower() in TABLES:
            rows = list(_table(file))
        else:
            rows = list(_json(file))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    if not rows:
        raise InputError(f"{file} has no rows")
    return rows


def read_text(file: Path) -> str:
    """A file of text in UTF-8, or in UTF-16 with a byte order mark, as spreadsheets save it. Raises InputError."""
    data = file.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}, line {line}: not {encoding.upper()} ({error.reason}); iconv makes it so") from error


def _json(file: Path) -> Iterator[dict[str, Any]]:
    text = read_text(file)
    if text.lstrip().startswith("["):
        try:
            yield from decode(text, list[dict[str, Any]])
        except Malformed as error:
            raise InputError(f"{file}: not an array of JSON objects ({error})") from error
        return
    # Not splitlines, which takes U+2028 within a string for an end of line.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield decode(line, dict[str, Any])
            except Malformed as error:
                raise InputError(f"{file}, line {number}: not a JSON object ({error})") from error


def _table(file: Path) -> Iterator[dict[str, Any]]:
    text = read_text(file)
    first = text.partition("\n")[0].rstrip("\r")
    delimiter = _delimiter(first, "\t" if file.suffix.lower() == ".tsv" else ",")
    # Quotes are text where a column ends at a tab, as in Common Voice's files, or at LJSpeech's bar.
    file_of_text = io.StringIO(text, newline="")
    if delimiter in "\t|":
        rows = csv.reader(file_of_text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(file_of_text, delimiter=delimiter)
    try:
        header = [name.strip() for name in next(rows, [])]
        for row in rows:
            if row:
                yield dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise InputError(f"{file}, line {rows.line_num}: {error}") from error


def _delimiter(header: str, usual: str) -> str:
    """What parts the columns: what the file's name says, unless another one makes the name of a column of audio out of
    the header."""

    def names(delimiter: str) -> set[str]:
        return {name.strip().strip('"') for name in header.split(delimiter)}

    return next((each for each in usual + DELIMITERS if names_audio(names(each))), usual)


def _parquet(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return rows
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error

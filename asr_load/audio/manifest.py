"""Read tables of recordings: JSON lines, a JSON array, CSV and its variants, metadata.parquet."""

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
TABLE_SUFFIXES = (*LINES, *TABLES)
"""Suffixes of files that are always manifests. For .json files (NeMo uses it for JSON lines) the content decides. A
metadata.parquet next to audio is also a manifest, as in `datasets`."""

LONGEST_ROW = 1 << 20
"""Bytes to read from a .json file to find out whether it is a manifest."""

DELIMITERS = ",\t;|"
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def is_manifest(file: Path) -> bool:
    """Whether a file is a manifest, by its name or, for .json, by its first row."""
    suffix = file.suffix.lower()
    if suffix == JSON:
        with file.open("rb") as data:
            beginning = data.read(LONGEST_ROW).lstrip()
        try:
            first = decode(beginning.split(b"\n", 1)[0])
        except Malformed:
            # It may be an array over several lines: read all of it.
            if not beginning.startswith(b"["):
                return False
            try:
                first = decode(file.read_bytes())
            except Malformed:
                return False
        row = first[0] if isinstance(first, list) and first else first
        return isinstance(row, dict) and names_audio(row)
    return suffix in TABLE_SUFFIXES or file.name.lower() == "metadata.parquet"


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a manifest. Raises InputError if the file is malformed or has no rows."""
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
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark, as spreadsheets save it. Raises InputError."""
    data = file.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file}, line {line}: not {encoding.upper()} ({error.reason}); convert the file with iconv"
        ) from error


def _json(file: Path) -> Iterator[dict[str, Any]]:
    text = read_text(file)
    if text.lstrip().startswith("["):
        try:
            yield from decode(text, list[dict[str, Any]])
        except Malformed as error:
            raise InputError(f"{file}: not an array of JSON objects ({error})") from error
        return
    # Not splitlines, which also splits at U+2028 within a string.
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
    # With tabs (Common Voice) or bars (LJSpeech) between columns, quotes are text.
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
    """The delimiter of the columns: the usual one for the file's suffix, unless only another one yields a known audio
    column."""

    def names(delimiter: str) -> set[str]:
        return {name.strip().strip('"') for name in header.split(delimiter)}

    return next((delimiter for delimiter in usual + DELIMITERS if names_audio(names(delimiter))), usual)


def _parquet(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return rows
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error

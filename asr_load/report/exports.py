"""Export a run's records and figures in formats that other tools read."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec

from asr_load.files import write_atomically
from asr_load.report import tables
from asr_load.report.comparison import markdown_table
from asr_load.report.sentence import sentence
from asr_load.report.view import view_finished
from asr_load.report.words import number, rates_line, run_lines
from asr_load.results.pass_fail import Kind
from asr_load.results.slo import slo_lines
from asr_load.results.summary import Finished, Summary
from asr_load.stream.record import RealtimeRecord, Record
from asr_load.text import count_of, visible


def export(folder: Path, finished: Finished, form: str) -> Path:
    """Export a run into its folder in one of FORMS, and return the file's path. Raises OSError."""
    name, write = FORMS[form]
    path = folder / name
    write_atomically(path, write(finished))
    return path


def _parquet(finished: Finished) -> bytes:
    """A Parquet file with the fields of records.jsonl as columns."""
    import pyarrow as pa  # imported late because it is slow to import
    import pyarrow.parquet as pq

    types = {
        "str": pa.string(), "bool": pa.bool_(), "SendLag": pa.string(), "dict[str, Count]": pa.string(),
        **dict.fromkeys(("Count", "Number", "Status", "CloseCode"), pa.int64()),
        **dict.fromkeys(("Seconds", "Lag", "Moment"), pa.float64()),
        **dict.fromkeys(("list[Seconds]", "list[Lag]"), pa.list_(pa.float64())),
    }  # fmt: skip
    fields = [(name, types[kind.removesuffix(" | None")]) for name, kind in _fields(finished.records).items()]
    counted = _counted(finished)
    columns = [
        pa.array(counted if name == COUNTED else [_value(record, name) for record in finished.records], kind)
        for name, kind in fields
    ]
    out = io.BytesIO()
    pq.write_table(pa.table(columns, names=[name for name, _ in fields]), out, compression="zstd")
    return out.getvalue()


def _fields(records: Iterable[Record]) -> dict[str, str]:
    """Columns and their types, with those of realtime sessions if there is one."""
    realtime = RealtimeRecord.__annotations__ if any(isinstance(record, RealtimeRecord) for record in records) else {}
    return Record.__annotations__ | realtime | {COUNTED: "bool"}


COUNTED = "counted"
"""Column that tells whether a record counts for latencies and error rates."""


def _counted(finished: Finished) -> list[bool]:
    """Whether each record counts for the figures: no warm-up, not trimmed, not excluded."""
    figured = {id(record) for record in finished.measured.sound}
    return [id(record) in figured for record in finished.records]


def _value(record: Record, name: str) -> Any:
    """The value of a field, with dictionaries as JSON."""
    value = getattr(record, name, None)
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else value


def _csv(finished: Finished) -> bytes:
    """A row for each record; a sequence becomes one cell with spaces between its values."""
    out = io.StringIO()
    writer = csv.writer(out)
    names = list(_fields(finished.records))
    writer.writerow(names)
    for record, counts in zip(finished.records, _counted(finished), strict=True):
        writer.writerow([_cell(counts if name == COUNTED else _value(record, name)) for name in names])
    return out.getvalue().encode("utf-8", "replace")


def _cell(value: object) -> object:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return " ".join(map(str, value))
    # Spreadsheets run text that looks like a formula, and this text may come from a server.
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _markdown(finished: Finished) -> bytes:
    """The tables of the summary as Markdown, for a pull request or a page."""
    summary = finished.summary
    lines = "\n".join(f"- {_plain(line)}" for line in _lines(summary))
    shown = [tables.latencies(summary), tables.lengths(summary), tables.user_classes(summary), tables.replicas(summary)]
    title = f"## {_plain(finished.info.model)} on {_plain(finished.info.host)}"
    first = _plain(sentence(finished.info, view_finished(summary)))
    parts = [title, first, lines, *(markdown_table(table) for table in shown if table.rows)]
    return ("\n\n".join(parts) + "\n").encode("utf-8", "replace")


def _plain(text: str) -> str:
    return visible(text).replace("<", "&lt;")


def _lines(summary: Summary) -> Iterator[str]:
    requests = summary.requests
    succeeded = f"{requests.success} succeeded, {requests.fail} failed"
    yield f"{count_of(requests.total, 'request')}: {succeeded}"
    rates = summary.requests_per_s, summary.rtfx
    yield f"{number(rates[0], 2)} requests/s, RTFx {number(rates[1], 2)}, over {summary.wall_s:.1f} s"
    if summary.references:
        yield rates_line(summary)
    yield f"Server: {view_finished(summary).server}"
    yield f"Client: {summary.validity.client}; figures: {summary.validity.verdict}"
    if summary.verdict is not None:
        yield summary.verdict.line
    yield from summary.validity.reasons
    yield from slo_lines(summary.slo)
    yield from run_lines(summary.metadata)


def _junit(finished: Finished) -> bytes:
    """A test case for the run and one for each SLO, in the JUnit format of Ant that CI systems read."""
    summary, cases = finished.summary, list[tuple[str, str]]()
    reasons = summary.verdict.reasons if summary.verdict else ()
    cases.append(("run", "; ".join(reason.text for reason in reasons if reason.kind is not Kind.SLO)))
    cases += [(one.name, "" if one.ok else line) for one, line in zip(summary.slo, slo_lines(summary.slo), strict=True)]
    failures = sum(bool(why) for _, why in cases)
    suite = ElementTree.Element(
        "testsuite", name="asr-load", tests=str(len(cases)), failures=str(failures), time=f"{summary.wall_s:.3f}"
    )
    model = f"asr-load.{visible(finished.info.model)}"
    for name, why in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=model, name=name)
        if why:
            ElementTree.SubElement(case, "failure", message=visible(why))
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


FORMS: dict[str, tuple[str, Callable[[Finished], bytes]]] = {
    "parquet": ("records.parquet", _parquet),
    "csv": ("records.csv", _csv),
    "markdown": ("summary.md", _markdown),
    "junit": ("junit.xml", _junit),
}
"""Export formats by name, each with its file and the function that writes it."""

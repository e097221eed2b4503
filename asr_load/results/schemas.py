"""The JSON schemas of the files that a run leaves: docs/schema."""

from __future__ import annotations

import ast
import sys
import textwrap
from inspect import getsource
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from asr_load.files import encode_json
from asr_load.results.capacity import Capacity
from asr_load.results.compare import Comparison
from asr_load.results.metrics import METRICS
from asr_load.results.runfile import RunInfo
from asr_load.results.summary import Summary
from asr_load.stream.record import RealtimeRecord, Record

SCHEMAS: dict[str, type] = {
    "record": Record,
    "realtime-record": RealtimeRecord,
    "run": RunInfo,
    "summary": Summary,
    "capacity": Capacity,
    "comparison": Comparison,
}
"""Types by the name of their file in docs/schema. `record` is a line of records.jsonl, whose format is in its run.json,
and `realtime-record` is a line of a realtime session."""


def schema(name: str) -> dict[str, Any]:
    """Return a JSON schema (2020-12). Later versions of the same format may add fields.

    A field's description is the definition of the metric of its name with the docstring below the field, or the help
    text of its option.
    """
    described: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **msgspec.json.schema(SCHEMAS[name]),
    }
    for kind in _classes(msgspec.inspect.type_info(SCHEMAS[name])):
        texts = _docstrings(kind)
        metrics = {metric.name: metric.definition for metric in METRICS.values() if kind in WITH_METRICS}
        for field, entry in described["$defs"][kind.__name__]["properties"].items():
            if text := ". ".join(filter(None, (metrics.get(field), texts.get(field)))):
                entry["description"] = text
    return described


WITH_METRICS = (Record, RealtimeRecord, Summary)
"""Types whose fields with the name of a metric hold that metric."""


def _classes(info: Any) -> set[type]:
    """The classes with fields within a type, itself included."""
    found: set[type] = set()
    waiting = [info]
    while waiting:
        each = waiting.pop()
        if isinstance(each, (list, tuple)):
            waiting += each
        elif isinstance(each, (inspect.StructType, inspect.TypedDictType)):
            if each.cls not in found:
                found.add(each.cls)
                waiting += (field.type for field in each.fields)
        elif isinstance(each, inspect.Type):
            waiting += (getattr(each, name) for name in each.__struct_fields__)
    return found


def _docstrings(kind: type) -> dict[str, str]:
    """The docstrings below the fields of a class and of its bases, by field."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not each.__module__.startswith("asr_load.") or each.__name__.endswith(("Options", "Metrics")):
            continue  # made from a table
        body = ast.parse(textwrap.dedent(getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(field.target, ast.Name):
                texts[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return texts


if __name__ == "__main__":
    for each in SCHEMAS:
        (Path(sys.argv[1]) / f"{each}.json").write_bytes(encode_json(schema(each)))

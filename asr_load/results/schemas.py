"""JSON schemas of a run's files, published in docs/schema."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from asr_load.files import encode_json
from asr_load.results.capacity import Capacity
from asr_load.results.compare import Comparison
from asr_load.results.runfile import RunInfo
from asr_load.results.summary import Summary
from asr_load.stream.record import LiveRecord, Record

SCHEMAS: dict[str, type] = {
    "record": Record,
    "realtime-record": LiveRecord,
    "run": RunInfo,
    "summary": Summary,
    "capacity": Capacity,
    "comparison": Comparison,
}
"""By file name in docs/schema. `record` is a line of records.jsonl, `realtime-record` such a line for a realtime
session; their format is that of their run."""


def schema(name: str) -> dict[str, Any]:
    """A JSON schema (2020-12). Later versions of the same format may add fields."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(SCHEMAS[name])}


if __name__ == "__main__":
    for each in SCHEMAS:
        (Path(sys.argv[1]) / f"{each}.json").write_bytes(encode_json(schema(each)))

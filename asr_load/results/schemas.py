"""The JSON schemas of the files that a run leaves: docs/schema."""

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
"""By the file's name in docs/schema; `record` is a line of records.jsonl, whose format is its run's, and
`realtime-record` one of a realtime session."""


def schema(name: str) -> dict[str, Any]:
    """A JSON schema (2020-12). Other fields than its own may come with a later version of the same format."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(SCHEMAS[name])}


if __name__ == "__main__":
    for each in SCHEMAS:
        (Path(sys.argv[1]) / f"{each}.json").write_bytes(encode_json(schema(each)))

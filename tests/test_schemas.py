"""Published schemas of files, and the files that they describe."""

from __future__ import annotations

import json
from array import array

import jsonschema
import msgspec
import pytest

from asr_load.report.comparison import comparison_view
from asr_load.results.capacity import Capacity
from asr_load.results.schemas import SCHEMAS, schema
from asr_load.results.summary import Finished
from conftest import CHECKOUT
from harness.records import failure, record, run_info

RECORDS = [record(n, clip=f"=clip|{n}") for n in range(3)] + [failure(3, "http_503", error="<b>\x1b[31m")]
RECORDS[1].itl = array("d", RECORDS[1].itl)  # type: ignore[assignment] # as read from a results folder
INFO = run_info(slos=["ttft:p95:100", "errors:rate:0.5"], metadata={"gpu": "H100"})
FINISHED = Finished(INFO, RECORDS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_published_schemas_equal_the_code(name: str) -> None:
    """`python -m asr_load.results.schemas docs/schema` writes them."""
    published = json.loads((CHECKOUT / "docs" / "schema" / f"{name}.json").read_text())
    assert published == schema(name)
    jsonschema.Draft202012Validator.check_schema(published)


def test_files_match_their_schemas() -> None:
    search = Capacity(
        kind="streams", slos=INFO.slos, most=8, host="h", model="m", data_sha256="0", loop={}, steps=[], answer=4
    )
    files = {
        "run": INFO,
        "summary": FINISHED.summary,
        "capacity": search,
        "comparison": comparison_view([FINISHED], [FINISHED]).comparison,
    }
    for name, value in files.items():
        jsonschema.validate(json.loads(msgspec.json.encode(value)), schema(name))
    for one in (RECORDS[0], RECORDS[3]):
        jsonschema.validate(json.loads(msgspec.json.encode(one)), schema("record"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"clip": 3}, schema("record"))


@pytest.mark.parametrize(
    ("name", "title"),
    [("record", "Record"), ("realtime-record", "RealtimeRecord"), ("summary", "Summary"), ("run", "RunInfo")],
)
def test_schema_describes_every_field(name: str, title: str) -> None:
    fields = schema(name)["$defs"][title]["properties"]
    assert [field for field, described in fields.items() if not described.get("description")] == []

"""Traces of arrivals, replayed from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asr_load.errors import InputError
from asr_load.schedule.arrivals import Arrivals, arrivals_of
from asr_load.schedule.loop import Loop


def made(**options: object) -> Arrivals:
    arrivals = arrivals_of(Loop(**options))  # type: ignore[arg-type]
    assert arrivals is not None
    return arrivals


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.jsonl", "5\n6.5\n\n6.5\n9\n"),
        ("t.jsonl", "".join(json.dumps({"at": at, "x": 1}) + "\n" for at in (5, 6.5, 6.5, 9))),
        ("t.jsonl", "".join(json.dumps({"timestamp": at}) + "\n" for at in (1005, 1006.5, 1006.5, 1009))),
        ("t.csv", "5\n6.5\n6.5\n9\n"),
        ("t.csv", "id,at\na,5\nb,6.5\nc,6.5\nd,9\n"),
        ("t.csv", "seconds\n5\n6.5\n6.5\n9\n"),
    ],
)
def test_trace_is_replayed_from_its_first_arrival(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    arrivals = made(trace=str(tmp_path / name), speed=2.0)
    assert [arrivals.due(number) for number in range(5)] == [0, 0.75, 0.75, 2, None]
    assert [arrivals.number_at(at) for at in (0, 0.5, 0.75, 1, 3)] == [0, 1, 1, 3, 4]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.jsonl", "1\n3\n2\n", "line 3: 2 comes after 3"),
        ("t.jsonl", "1\n-2\n", "line 2: -2 is not a time"),
        ("t.jsonl", "1\nnull\n", "line 2: no time"),
        ("t.jsonl", '{"when": 1}\n', "line 1: no time"),
        ("t.jsonl", "NaN\n", "line 1"),
        ("t.jsonl", "true\n", "line 1"),
        ("t.jsonl", "one\n", "line 1: no time"),
        ("t.jsonl", "", "contains no arrivals"),
        ("t.csv", "a,b\n1,2\n", "line 2: no time"),
        ("t.csv", "at\n", "contains no arrivals"),
    ],
)
def test_malformed_trace_is_rejected_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        made(trace=str(tmp_path / name))

"""Parts of a run's requests, and the values of a manifest's columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr_load.errors import InputError
from asr_load.results.accuracy import Recording
from asr_load.results.parts import by, values_of
from asr_load.results.sound import Selection
from harness.records import failure, record

RECORDS = [record(0, clip="b"), record(1, clip="a"), failure(2, "http_503", clip="b"), record(3, clip="b")]


def test_parts_are_sorted_by_key_and_count_failures() -> None:
    first, second = by(Selection(RECORDS, RECORDS), lambda record: record.clip)
    assert (first.key, first.good, first.failed) == ("a", [RECORDS[1]], 0)
    assert (second.key, second.good, second.failed) == ("b", [RECORDS[0], RECORDS[3]], 1)
    assert second.figures("ttft").n == 2


def test_late_requests_count_for_throughput_only() -> None:
    run = Selection(RECORDS, RECORDS[:2])
    _, second = by(run, lambda record: record.clip)
    assert (len(second.counted), second.sound, second.failed) == (3, [RECORDS[0]], 0)


def test_recording_belongs_to_the_request_that_completed_it_or_to_its_own_key() -> None:
    run = Selection(RECORDS, RECORDS)
    whole = Recording("whole", 30.0, "one two", "one", RECORDS[1])
    first, second = by(run, lambda record: record.clip, [whole])
    assert (first.recordings, second.recordings) == ([whole], [])
    parts = by(run, lambda record: record.clip, [whole], key_of_recording=lambda whole: whole.clip)
    assert [(part.key, len(part.counted), part.recordings) for part in parts] == [
        ("a", 1, []),
        ("b", 3, []),
        ("whole", 0, [whole]),
    ]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("m.csv", "id,file,speaker\nx,a/1.wav,Ann\ny,a/2.wav,\n", {"x": "Ann", "1": "Ann", "y": "", "2": ""}),
        (
            "m.jsonl",
            '{"audio_filepath": "a/1.wav", "speaker": 7}\n{"audio_filepath": "b/1.wav"}',
            {"1": "7", "1-2": ""},
        ),
        ("m.tsv", "speaker\ttext\nAnn\thello\n", {"row-000000": "Ann"}),
    ],
)
def test_values_of_a_column_have_the_ids_of_prepare(
    tmp_path: Path, name: str, text: str, found: dict[str, str]
) -> None:
    (tmp_path / name).write_text(text)
    assert values_of(tmp_path / name, "speaker") == found


def test_column_that_the_manifest_lacks_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("id,speaker\nx,Ann\n")
    with pytest.raises(InputError, match=r"--by accent: .*m\.csv has no such column; its columns are id, speaker"):
        values_of(tmp_path / "m.csv", "accent")

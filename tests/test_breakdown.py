"""Tables of parts of a run, and report.py --by."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr_load.report.breakdown import COLUMN_ROWS, Breakdown
from asr_load.report.main import main
from asr_load.results.summary import Finished
from asr_load.stream.record import Record
from harness.records import failure, record, run_folder, run_info

MANIFEST = "id,speaker\nclip0,Ann\nclip1,Bob\nclip2,\n"


def said_by_three() -> list[Record]:
    """Ann's clip is right three times and fails once, Bob's is wrong, and the manifest has no speaker for others."""
    right = {"clip": "clip0", "reference": "red green", "text": "red green"}
    wrong = {"clip": "clip1", "reference": "red green", "text": "red black"}
    records = [*(record(n, **right) for n in range(3)), failure(3, "http_503", clip="clip0"), record(4, **wrong)]
    return [*records, record(5, clip="clip2", reference=""), record(6, clip="other", reference="")]


def by_speaker(records: list[Record], values: dict[str, str]) -> list[tuple[str, ...]]:
    table = Breakdown(Finished(run_info(), records)).by_column("speaker", values)
    return [(row[0], row[1], row[2], row[-1]) for row in table.rows]


def test_requests_are_split_by_a_column_largest_part_first() -> None:
    values = {"clip0": "Ann", "clip1": "Bob", "clip2": ""}
    assert by_speaker(said_by_three(), values) == [
        ("Ann", "3", "1", "0.0%"),
        ("unknown", "2", "0", "n/a"),
        ("Bob", "1", "0", "50.0%"),
    ]


def test_parts_of_a_long_recording_have_its_value() -> None:
    records = [
        record(n, clip=f"talk~000{n}-of-0002", reference="red green" * (n == 0), text=("red", "black")[n])
        for n in range(2)
    ]
    table = Breakdown(Finished(run_info(in_parts=True), records)).by_column("speaker", {"talk": "Ann"})
    assert [(row[0], row[1], row[-1]) for row in table.rows] == [("Ann", "2", "50.0%")]


def test_only_the_largest_parts_are_shown() -> None:
    records = [record(n, clip=f"c{n}") for n in range(COLUMN_ROWS + 2)]
    table = Breakdown(Finished(run_info(), records)).by_column(
        "speaker", {f"c{n}": str(n) for n in range(COLUMN_ROWS + 2)}
    )
    assert (len(table.rows), table.note) == (COLUMN_ROWS, "2 more are not shown.")


def test_report_by_a_column_prints_a_table_and_adds_a_section(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path / "run", said_by_three(), run_info())
    manifest = tmp_path / "m.csv"
    manifest.write_text(MANIFEST)
    monkeypatch.setattr("sys.argv", ["report.py", str(folder), "--by", "speaker", "--manifest", str(manifest)])
    assert main() == 0
    out = capsys.readouterr().out
    assert out.index("By speaker") < out.index("│ Ann") < out.index("│ Bob") < out.index("\nVerdict: ")
    page = (folder / "report.html").read_text()
    assert page.index("<h2>By column of the manifest</h2>") < page.index("<h3>By speaker</h3>") < page.index("Bob")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--by", "speaker"], "--by and --manifest belong together"),
        (["--by", "accent", "--manifest", "m.csv"], "its columns are id, speaker"),
        (["--by", "speaker", "--manifest", "other.csv"], "--manifest has none of the run's clips (its clips have ids"),
    ],
)
def test_by_without_a_matching_manifest_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    folder = run_folder(tmp_path / "run", said_by_three(), run_info())
    (tmp_path / "m.csv").write_text(MANIFEST)
    (tmp_path / "other.csv").write_text("id,speaker\nnobody,Ann\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report.py", str(folder), *words])
    assert main() == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1

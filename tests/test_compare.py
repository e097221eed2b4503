"""Comparisons: a difference is said where it is more than chance, and nowhere else."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from asr_load.errors import InputError
from asr_load.report import main
from asr_load.results.compare import (
    BETTER,
    SAME,
    WORSE,
    Z_995,
    Compared,
    Run,
    broken_gates,
    compare,
    one_is_live,
    parse_gate,
)
from asr_load.results.comparison_report import markdown, print_comparison
from asr_load.results.proportion import Counted, difference_of_shares
from asr_load.results.runfile import Speaking, UserClassInfo
from asr_load.results.summary import Finished, summarise
from asr_load.stream.record import LiveRecord, Record
from asr_load.web.report import comparison_page
from harness.records import failure, record, run_folder, run_info, worker_info


def made(seed: int, *, scale: float = 1.0, count: int = 600, errors: int = 0, word: str = "said") -> list[Record]:
    """Requests over 40 clips, with TTFT of a gamma distribution around 0.2 s."""
    random = np.random.default_rng(seed)
    records: list[Record] = []
    for number in range(count):
        ttft = scale * float(random.gamma(16, 0.2 / 16))
        clip = f"clip{number % 40}"
        text = f"he {word if number % 40 < 10 else 'said'} number {number % 40}"
        common: dict[str, Any] = {"clip": clip, "started_at": 1000.0 + number / 10}
        if number < errors:
            records.append(failure(number, "http_503", ended_at=common["started_at"] + 0.1, **common))
            continue
        reference = f"he said number {number % 40}"
        times = {"ttft": ttft, "e2el": ttft + 0.2, "stream_end": ttft + 0.21, "headers": None}
        records.append(record(number, **common, **times, text=text, reference=reference))
    return records


def run(records: list[Record], name: str = "run", **changes: Any) -> Run:
    info = run_info(workers=[worker_info(ended_at=1061.0)], **changes)
    return Run(Path(name), Finished(info, records, summarise(records, info)))


def figures(value: Run, baseline: Run, min_change: float = 0.0) -> dict[str, Compared]:
    return {figure.name: figure for figure in compare([value], [baseline], min_change).figures}


def test_a_difference_and_none() -> None:
    same = figures(run(made(1)), run(made(2)))
    assert {figure.word for figure in same.values()} == {SAME}
    slower = figures(run(made(1, scale=1.1)), run(made(2)))
    ttft = slower["ttft_mean"]
    assert ttft.word == WORSE
    assert ttft.unit == "ms"
    assert ttft.difference == pytest.approx(20, abs=6)
    assert ttft.low is not None
    assert ttft.high is not None
    assert 0 < ttft.low < 20 < ttft.high
    assert ttft.relative == pytest.approx(0.1, abs=0.03)
    assert figures(run(made(1, scale=0.9)), run(made(2)))["ttft_p50"].word == BETTER
    assert figures(run(made(1, scale=1.1)), run(made(2)), min_change=0.2)["ttft_mean"].word == SAME


def test_the_interval_is_that_of_theory() -> None:
    """Of means of independent values: 1.96 standard errors of the difference either way, give or take."""
    one, other = run(made(1)), run(made(2))
    found = figures(one, other)["ttft_mean"]
    spreads = [np.var([each.ttft or 0.0 for each in side.measured], ddof=1) / 600 for side in (one, other)]
    assert found.low is not None
    assert found.high is not None
    # It holds two intervals, each with its own chance.
    assert 0.9 < (found.high - found.low) / (2 * 1.96 * float(np.sqrt(sum(spreads))) * 1e3) < 1.5


def test_what_is_below_the_clients_resolution_gets_no_word() -> None:
    """Of values without spread, a microsecond is more than chance, and nothing that a client can tell."""
    base = [record(n, clip=f"clip{n % 40}") for n in range(200)]
    for more, word in ((5e-5, SAME), (5e-4, WORSE)):
        slower = [record(n, clip=f"clip{n % 40}", ttft=0.2 + more, headers=None, e2el=0.4 + more) for n in range(200)]
        found = figures(run(slower), run(base))
        assert {found[name].word for name in ("ttft_p50", "e2el_mean", "rtf_p50")} == {word}


def test_more_is_better_for_rates_and_worse_for_errors() -> None:
    found = figures(run(made(1, errors=200)), run(made(2)))
    assert found["error_rate"].value == pytest.approx(1 / 3)
    assert found["error_rate"].word == WORSE
    assert found["requests_per_s"].word == WORSE
    assert found["requests_per_s"].difference is not None
    assert found["requests_per_s"].difference < 0


def test_text_is_compared_clip_by_clip() -> None:
    """Ten of forty clips are wrong by one word of four: WER differs by 1/16, and clips that one side has not are left
    out."""
    baseline = [one for one in made(2) if one.clip != "clip39"]
    found = figures(run(made(1, word="sad")), run(baseline))["wer"]
    assert found.value == pytest.approx(10 / 39 / 4)
    assert found.baseline == 0
    assert found.word == WORSE
    assert found.relative is None
    alike = figures(run(made(1, word="sad")), run(made(2, word="sad")))["wer"]
    assert (alike.low, alike.high, alike.word) == (0, 0, SAME)


def test_several_runs_a_side_count_by_runs() -> None:
    """Runs that differ among themselves by more than their requests tell are no ground for a word."""
    drifting = [run(made(seed, scale=scale)) for seed, scale in ((1, 1.0), (2, 1.3), (3, 1.6))]
    steady = [run(made(seed)) for seed in (4, 5, 6)]
    found = compare(drifting, steady)
    assert {figure.word for figure in found.figures if figure.name.startswith("ttft")} == {SAME}
    assert "Welch" in found.method
    slow = [run(made(seed, scale=1.5)) for seed in (1, 2, 3)]
    assert next(one for one in compare(slow, steady).figures if one.name == "ttft_mean").word == WORSE
    with pytest.raises(InputError, match="one run a side, or two and more of each"):
        compare(drifting, steady[:1])


def failing(seed: int, failures: int, count: int = 200) -> Run:
    """A run in which some requests fail, spread over its time."""
    records = made(seed, count=count)
    for number in np.random.default_rng(seed).choice(count, failures, replace=False).tolist():
        one = records[number]
        records[number] = failure(number, "http_503", clip=one.clip, started_at=one.started_at, ended_at=one.end)
    return run(records)


def test_equal_error_rates_of_two_runs_a_side_are_no_evidence() -> None:
    """2 of 200 in both runs against 0 of 200: four failures by chance are as likely as that; forty are not."""
    without = [failing(seed, 0) for seed in (3, 4)]
    few = compare([failing(seed, 2) for seed in (1, 2)], without)
    rate = next(one for one in few.figures if one.name == "error_rate")
    assert (rate.value, rate.baseline, rate.word) == (0.01, 0.0, SAME)
    assert rate.low is not None
    assert rate.high is not None
    assert -0.05 < rate.low < 0
    assert 0.01 < rate.high < 0.05
    assert broken_gates(few, [parse_gate("errors:rate:0")]) == []
    many = compare([failing(seed, 20) for seed in (1, 2)], without)
    assert next(one for one in many.figures if one.name == "error_rate").word == WORSE
    assert broken_gates(many, [parse_gate("errors:rate:0.02")]) != []


def test_failures_of_one_run_a_side_are_no_evidence_where_they_are_few() -> None:
    for failures, word in ((2, SAME), (5, SAME), (20, WORSE)):
        assert figures(failing(1, failures), failing(2, 0))["error_rate"].word == word


def test_runs_that_agree_to_the_last_bit_are_no_evidence() -> None:
    """Without spread between runs, what requests differ by within them is still there, for every kind of figure."""
    found = compare([run(made(1))] * 2, [run(made(2))] * 2).figures
    assert {one.name for one in found} >= {"ttft_p95", "rtfx", "error_rate", "wer"}
    assert {one.word for one in found} == {SAME}
    assert (
        next(one for one in found if one.name == "ttft_mean").low
        != next(one for one in found if one.name == "ttft_mean").high
    )


def test_a_percentile_of_few_values_gets_no_word() -> None:
    """A p99 of a hundred values is their maximum, however far apart two maxima are; a median of them is known."""
    found = figures(run(made(1, scale=2.0, count=120)), run(made(2, count=120)))
    assert (found["ttft_p99"].word, found["ttft_p50"].word) == (SAME, WORSE)
    assert found["ttft_p99"].low is not None
    assert figures(run(made(1, scale=2.0)), run(made(2)))["ttft_p99"].word == WORSE


@pytest.mark.parametrize("share", [0.002, 0.01, 0.1])
@pytest.mark.parametrize("burst", [1, 5])
def test_equal_error_rates_seldom_look_different(share: float, burst: int) -> None:
    """Two sides of 400 requests in 60 stretches whose failures come one by one, or five at a time: the 99 % interval
    leaves out 0 in about one of a hundred pairs. A rate that is four times as high is found."""
    random = np.random.default_rng(0)
    trials = np.full(60, 400 / 60)

    def side(rate: float) -> Counted:
        events = random.binomial(400 // burst, rate) * burst
        places = random.integers(60, size=events // burst)
        return Counted(np.bincount(places, minlength=60) * float(burst), trials)

    def apart(rate: float, other: float) -> bool:
        found = difference_of_shares(side(rate), side(other), Z_995)
        assert found is not None
        return found[0] > 0 or found[1] < 0

    assert sum(apart(share, share) for _ in range(1000)) <= 20
    if share * burst == 0.1:
        assert sum(apart(4 * share, share) for _ in range(100)) >= 95


def test_what_is_not_comparable_is_said_first() -> None:
    other = run(made(2), "b", data_sha256="1", max_tokens=64, num_users=3, loop={"rate": 5.0})
    found = compare([run(made(1), "a", num_users=9)], [other]).warnings
    text = "\n".join(found)
    for said in (
        "the data (manifest) differ",
        "--max-tokens differ: 128 here, 64",
        "the users differ",
        "arrivals differ",
    ):
        assert said in text
    assert "one run a side" in text
    few = "\n".join(compare([run(made(1, count=8))], [run(made(2, count=8))]).warnings)
    assert "8 clips are too few" in few
    assert "8 successes are few" in few


@pytest.mark.parametrize("records", [[], [failure(0, "cut")], [record(0)]], ids=["none", "failed", "one"])
def test_next_to_nothing_is_compared_without_a_word(records: list[Record]) -> None:
    found = compare([run(records)], [run(made(1))])
    assert {one.word for one in found.figures if one.name.startswith(("ttft", "wer"))} == {SAME}
    assert "comparison" in comparison_page(found, [run(records).finished], [run(made(1)).finished])
    assert "| ttft_mean, ms |" in markdown(found) or not records or not records[0].ok


def test_gates_break_only_beyond_the_interval() -> None:
    found = compare([run(made(1, scale=1.1))], [run(made(2))])
    assert broken_gates(found, [parse_gate("ttft:mean:2%")])[0].startswith(
        "--fail-on ttft:mean:2%: ttft_mean is worse by"
    )
    # 10 % slower as measured, but it may be less.
    assert (
        broken_gates(found, [parse_gate("ttft:mean:9.5%"), parse_gate("ttft:mean:50"), parse_gate("wer:mean:0.5")])
        == []
    )
    rate = compare([run(made(1, errors=300))], [run(made(2))])
    assert broken_gates(rate, [parse_gate("requests_per_s:mean:10%"), parse_gate("errors:rate:0.9")]) != []
    nothing = compare([run(made(1))], [run([])])
    assert broken_gates(nothing, [parse_gate("ttft:p95:10%")]) == [
        "--fail-on ttft:p95:10%: ttft_p95 cannot be compared"
    ]


@pytest.mark.parametrize("text", ["ttft", "ttft:p95", "ttft:p42:1%", "speed:mean:1", "ttft:p95:-1", "ttft:p95:nan%"])
def test_a_gate_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="--fail-on"):
        parse_gate(text)


def folder_of(folder: Path, records: list[Record]) -> str:
    """The path of a run's folder with its files."""
    return str(run_folder(folder, records, run_info(workers=[worker_info(ended_at=1061.0)])))


@pytest.mark.parametrize("warnings", [0, 1, 3])
def test_the_comparison_table_is_printed_once_however_many_warnings_there_are(warnings: int) -> None:
    found = compare([run(made(1))], [run(made(2))])
    found.warnings = [f"warning {number}" for number in range(warnings)]
    out = io.StringIO()
    print_comparison(found, out)
    assert out.getvalue().count("95 % interval") == 1
    assert out.getvalue().count("ttft_p95, ms") == 1
    assert [f"  - warning {number}" in out.getvalue() for number in range(warnings)] == [True] * warnings
    assert markdown(found).count("| ttft_p95, ms |") == 1
    assert comparison_page(found, [run(made(1)).finished], [run(made(2)).finished]).count(">ttft_p95, ms<") == 1


@pytest.mark.parametrize("warnings", [0, 1, 3])
def test_the_report_command_prints_one_comparison_table_for_several_runs(
    warnings: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without warm-up gives one warning."""
    folders = []
    for number in range(4):
        records = made(number, count=200)
        records[0].warmup = number >= warnings
        folders.append(folder_of(tmp_path / str(number), records))
    monkeypatch.setattr("sys.argv", ["report.py", *folders[:2], "--baseline", *folders[2:]])
    assert main() == 0
    out = capsys.readouterr().out
    assert len(json.loads((tmp_path / "0" / "comparison.json").read_text())["warnings"]) == warnings
    assert out.count("95 % interval") == 1
    assert out.count("ttft_p95, ms") == 1


def test_a_comparison_of_runs_without_a_common_figure_prints_an_empty_table() -> None:
    found = compare([run([])], [run([])])
    found.figures = []
    out = io.StringIO()
    print_comparison(found, out)
    assert "0 of 0 figures" in out.getvalue()


@pytest.mark.parametrize("text", ["ttft:p95:20ms", "ttft:p95:0.02s", "ttft:p95:20", "ttft:p95: 20 ms"])
def test_a_gate_of_a_latency_takes_units(text: str) -> None:
    gate = parse_gate(text)
    assert (gate.name, gate.limit, gate.relative) == ("ttft_p95", 20, False)


def test_a_gate_of_a_small_latency_asks_for_its_unit() -> None:
    with pytest.raises(InputError, match=r"--fail-on 'tpot:mean:0\.5': 0\.5 of which unit"):
        parse_gate("tpot:mean:0.5")
    assert parse_gate("tpot:mean:0.5ms").limit == 0.5
    assert parse_gate("tpot:mean:0.5%").limit == 0.005
    assert parse_gate("requests_per_s:mean:0.5").limit == 0.5


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, records in (("a", made(1, scale=1.2)), ("b", made(2))):
        folder_of(tmp_path / name, records)
    command = ["report.py", str(tmp_path / "a"), "--baseline", str(tmp_path / "b")]
    monkeypatch.setattr("sys.argv", [*command, "--export", "markdown"])
    assert main() == 0
    out = capsys.readouterr().out
    assert "=== Comparison ===" in out
    assert "ttft_mean, ms" in out
    written = json.loads((tmp_path / "a" / "comparison.json").read_text())
    assert written["format"] == 1
    assert {"name", "unit", "baseline", "value", "difference", "low", "high", "relative", "word"} == set(
        written["figures"][0]
    )
    assert "worse" in (tmp_path / "a" / "comparison.html").read_text()
    assert "| ttft_mean, ms |" in (tmp_path / "a" / "comparison.md").read_text()
    monkeypatch.setattr("sys.argv", [*command, "--fail-on", "ttft:p95:1%"])
    assert main() == 1
    first = (tmp_path / "a" / "comparison.json").read_bytes()
    monkeypatch.setattr("sys.argv", [*command, "--fail-on", "ttft:p95:50%"])
    assert main() == 0
    assert (tmp_path / "a" / "comparison.json").read_bytes() == first
    for words in (["--min-change", "lots"], ["--fail-on", "ttft"]):
        monkeypatch.setattr("sys.argv", [*command, *words])
        assert main() == 2
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "a"), "--fail-on", "ttft:p95:1%"])
    assert main() == 2
    assert "--baseline" in capsys.readouterr().err


def test_what_live_speech_costs_in_accuracy_is_in_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, word, live in (("live", "sad", True), ("file", "said", False)):
        records = [LiveRecord(**msgspec.structs.asdict(one)) if live else one for one in made(1, word=word)]
        how: dict[str, Any] = {"api": "realtime", "realtime": {"dialect": "vllm", "pace": 1.0}} if live else {}
        run_folder(tmp_path / name, records, run_info(workers=[worker_info(ended_at=1061.0)], **how))
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "live"), "--baseline", str(tmp_path / "file")])
    assert main() == 0
    # A quarter of the clips have one of four words wrong.
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Live against one-shot")]
    assert said[0].startswith("Live against one-shot: WER +6.2 points (95 %: +")
    assert said[0].endswith(", over 40 clips")
    # What takes as long as speaking takes is not slower than an upload.
    comparison = json.loads((tmp_path / "live" / "comparison.json").read_text())
    assert {figure["name"] for figure in comparison["figures"]} == {"wer", "cer", "error_rate"}
    assert comparison["warnings"][0].startswith("one side spoke and the other uploaded")
    assert 'data-plot="' not in (tmp_path / "live" / "comparison.html").read_text()
    found = json.loads((tmp_path / "live" / "summary.json").read_text())["live_accuracy"]
    assert found["clips"] == 40
    assert found["baseline"] == str(tmp_path / "file")
    assert found["wer"]["value"] == pytest.approx(1 / 16)
    assert [found["wer"][side] for side in ("low", "high")] == [
        comparison["figures"][1][side] for side in ("low", "high")
    ]
    assert 0 < found["wer"]["low"] < 1 / 16 < found["wer"]["high"] < 0.15
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "live"), "--baseline", str(tmp_path / "live")])
    assert main() == 0
    assert json.loads((tmp_path / "live" / "summary.json").read_text())["live_accuracy"] is None


def test_runs_of_classes_that_speak_and_upload_are_alike_only_to_each_other() -> None:
    speaks: Speaking = {"dialect": "vllm", "pace": 1.0}
    common: dict[str, Any] = {
        "endpoint": "/",
        "model": "m",
        "prompt": "",
        "max_tokens": 1,
        "unique": "dither",
        "data": "d",
    }
    common |= {"data_sha256": "0", "data_clips": 1}
    classes = [
        UserClassInfo(name="Files", api="chat", **common),
        UserClassInfo(name="Talks", api="realtime", realtime=speaks, **common),
    ]
    uploads, live, both = run_info(), run_info(realtime=speaks), run_info(user_classes=classes)
    assert not any(one_is_live([info, info]) for info in (uploads, live, both))
    assert all(one_is_live(pair) for pair in ([uploads, live], [uploads, both], [both, live]))


def test_the_page_draws_each_metric_of_one_side_with_the_same_of_the_other() -> None:
    """Answers in one piece have no gaps between chunks."""
    whole = [record(n, itl=[], chunks=1, e2el=0.2, stream_end=0.21) for n in range(20)]
    sides = run([record(n) for n in range(20)]), run(whole)
    page = comparison_page(compare([sides[0]], [sides[1]]), [sides[0].finished], [sides[1].finished])
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page)
    assert found is not None
    ends = {plot["title"]: [one["data"][-1][0] for one in plot["series"]] for plot in json.loads(found[1])["plots"]}
    assert ends == {"TTFT: share of values up to it": [200, 200], "E2E: share of values up to it": [400, 200]}


def test_a_rate_of_a_few_requests_gets_no_word() -> None:
    info = run_info()
    own = [[record(0)], [failure(0, "http_503")]]
    one, none = (Run(Path("x"), Finished(info, records, summarise(records, info))) for records in own)
    assert {figure.word for figure in compare([one], [none]).figures} == {SAME}
    assert figures(run(made(1)), run(made(1, errors=600)))["requests_per_s"].word == BETTER

"""Comparisons: a difference is marked better or worse only if it is more than chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from asr_load.errors import InputError
from asr_load.report.comparison import comparison_view, gate_line, markdown
from asr_load.report.main import main
from asr_load.report.page import comparison_page
from asr_load.results.compare import (
    BETTER,
    NO_DIFFERENCE,
    WORSE,
    Z_995,
    Compared,
    broken_gates,
    compare,
    one_is_realtime,
    parse_gate,
)
from asr_load.results.proportion import Counted, difference_of_shares
from asr_load.results.runfile import Speaking, UserClassInfo
from asr_load.results.summary import Finished
from asr_load.stream.record import RealtimeRecord, Record
from harness.comparisons import made, run
from harness.records import failure, record, run_folder, run_info, worker_info


def figures(value: Finished, baseline: Finished, min_change: float = 0.0) -> dict[str, Compared]:
    return {figure.name: figure for figure in compare([value], [baseline], min_change).figures}


def test_comparison_finds_a_difference_and_no_difference() -> None:
    same = figures(run(made(1)), run(made(2)))
    assert {figure.word for figure in same.values()} == {NO_DIFFERENCE}
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
    assert figures(run(made(1, scale=1.1)), run(made(2)), min_change=0.2)["ttft_mean"].word == NO_DIFFERENCE


def test_comparison_interval_agrees_with_theory() -> None:
    """For means of independent values, it is about ±1.96 standard errors of the difference."""
    one, other = run(made(1)), run(made(2))
    found = figures(one, other)["ttft_mean"]
    spreads = [np.var([each.ttft or 0.0 for each in side.measured.sound], ddof=1) / 600 for side in (one, other)]
    assert found.low is not None
    assert found.high is not None
    # It contains two intervals, each with its own chance of error.
    assert 0.9 < (found.high - found.low) / (2 * 1.96 * float(np.sqrt(sum(spreads))) * 1e3) < 1.5


def test_difference_below_the_clients_resolution_is_same() -> None:
    """For values without spread, a microsecond is more than chance, but the client cannot resolve it."""
    base = [record(n, clip=f"clip{n % 40}") for n in range(200)]
    for more, word in ((5e-5, NO_DIFFERENCE), (5e-4, WORSE)):
        slower = [record(n, clip=f"clip{n % 40}", ttft=0.2 + more, headers=None, e2el=0.4 + more) for n in range(200)]
        found = figures(run(slower), run(base))
        assert {found[name].word for name in ("ttft_p50", "e2el_mean", "rtf_p50")} == {word}


def test_higher_is_better_for_rates_and_worse_for_errors() -> None:
    found = figures(run(made(1, errors=200)), run(made(2)))
    assert found["error_rate"].value == pytest.approx(1 / 3)
    assert found["error_rate"].word == WORSE
    assert found["requests_per_s"].word == WORSE
    assert found["requests_per_s"].difference is not None
    assert found["requests_per_s"].difference < 0


def test_wer_is_compared_per_clip() -> None:
    """In 10 of 40 clips, one word of four is wrong: WER differs by 1/16. Clips of only one side are excluded."""
    baseline = [one for one in made(2) if one.clip != "clip39"]
    found = figures(run(made(1, word="sad")), run(baseline))["wer"]
    assert found.value == pytest.approx(10 / 39 / 4)
    assert found.baseline == 0
    assert found.word == WORSE
    assert found.relative is None
    alike = figures(run(made(1, word="sad")), run(made(2, word="sad")))["wer"]
    assert (alike.low, alike.high, alike.word) == (0, 0, NO_DIFFERENCE)


def test_several_runs_per_side_are_compared_by_run() -> None:
    """If runs of one side differ by more than their requests explain, no difference is reported."""
    drifting = [run(made(seed, scale=scale)) for seed, scale in ((1, 1.0), (2, 1.3), (3, 1.6))]
    steady = [run(made(seed)) for seed in (4, 5, 6)]
    found = comparison_view(drifting, steady).comparison
    assert {figure.word for figure in found.figures if figure.name.startswith("ttft")} == {NO_DIFFERENCE}
    assert "Welch" in found.method
    slow = [run(made(seed, scale=1.5)) for seed in (1, 2, 3)]
    assert next(one for one in compare(slow, steady).figures if one.name == "ttft_mean").word == WORSE
    with pytest.raises(InputError, match="one run on each side, or at least two on each side"):
        compare(drifting, steady[:1])


def failing(seed: int, failures: int, count: int = 200) -> Finished:
    """A run in which some requests fail, spread over its duration."""
    records = made(seed, count=count)
    for number in np.random.default_rng(seed).choice(count, failures, replace=False).tolist():
        one = records[number]
        records[number] = failure(number, "http_503", clip=one.clip, started_at=one.started_at, ended_at=one.end)
    return run(records)


def test_few_failures_in_two_runs_per_side_are_not_worse() -> None:
    """2 of 200 in both runs against 0 of 200 may be chance. 20 of 200 are not."""
    without = [failing(seed, 0) for seed in (3, 4)]
    few = compare([failing(seed, 2) for seed in (1, 2)], without)
    rate = next(one for one in few.figures if one.name == "error_rate")
    assert (rate.value, rate.baseline, rate.word) == (0.01, 0.0, NO_DIFFERENCE)
    assert rate.low is not None
    assert rate.high is not None
    assert -0.05 < rate.low < 0
    assert 0.01 < rate.high < 0.05
    assert [*broken_gates(few, [parse_gate("errors:rate:0")])] == []
    many = compare([failing(seed, 20) for seed in (1, 2)], without)
    assert next(one for one in many.figures if one.name == "error_rate").word == WORSE
    assert [*broken_gates(many, [parse_gate("errors:rate:0.02")])] != []


def test_few_failures_in_one_run_per_side_are_not_worse() -> None:
    for failures, word in ((2, NO_DIFFERENCE), (5, NO_DIFFERENCE), (20, WORSE)):
        assert figures(failing(1, failures), failing(2, 0))["error_rate"].word == word


def test_identical_runs_are_the_same() -> None:
    """Without spread between runs, the spread of requests within them still counts, for every kind of figure."""
    found = compare([run(made(1))] * 2, [run(made(2))] * 2).figures
    assert {one.name for one in found} >= {"ttft_p95", "rtfx", "error_rate", "wer"}
    assert {one.word for one in found} == {NO_DIFFERENCE}
    assert (
        next(one for one in found if one.name == "ttft_mean").low
        != next(one for one in found if one.name == "ttft_mean").high
    )


def test_percentile_of_few_values_is_same() -> None:
    """The p99 of a hundred values is their maximum and is never marked, however far the maxima differ."""
    found = figures(run(made(1, scale=2.0, count=120)), run(made(2, count=120)))
    assert (found["ttft_p99"].word, found["ttft_p50"].word) == (NO_DIFFERENCE, WORSE)
    assert found["ttft_p99"].low is not None
    assert figures(run(made(1, scale=2.0)), run(made(2)))["ttft_p99"].word == WORSE


@pytest.mark.parametrize("share", [0.002, 0.01, 0.1])
@pytest.mark.parametrize("burst", [1, 5])
def test_equal_error_rates_seldom_differ(share: float, burst: int) -> None:
    """Two sides have 400 requests in 60 slices; failures come one by one or five at a time. The 99 % interval excludes
    0 in about 1 of 100 pairs. A fourfold rate is found."""
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


def test_comparison_lists_differing_settings_first() -> None:
    other = run(made(2), "b", data_sha256="1", max_tokens=64, num_users=3, loop={"rate": 5.0})
    found = comparison_view([run(made(1), "a", num_users=9)], [other]).comparison.warnings
    text = "\n".join(found)
    for said in (
        "different data (manifest): ",
        "different --max-tokens: 128 here, 64",
        "different number of users: ",
        "arrivals differ",
    ):
        assert said in text
    assert "one run on each side" in text
    few = "\n".join(comparison_view([run(made(1, count=8))], [run(made(2, count=8))]).comparison.warnings)
    assert "8 clips, too few" in few
    assert "with only 8 successful requests" in few


@pytest.mark.parametrize("records", [[], [failure(0, "cut")], [record(0)]], ids=["none", "failed", "one"])
def test_comparison_of_few_requests_is_same(records: list[Record]) -> None:
    found = comparison_view([run(records)], [run(made(1))])
    assert {one.word for one in found.comparison.figures if one.name.startswith(("ttft", "wer"))} == {NO_DIFFERENCE}
    assert "comparison" in comparison_page(found, [run(records)], [run(made(1))])
    assert "| TTFT mean, ms |" in markdown(found) or not records or not records[0].ok


def test_fail_on_breaks_only_beyond_the_interval() -> None:
    found = compare([run(made(1, scale=1.1))], [run(made(2))])
    assert gate_line(next(broken_gates(found, [parse_gate("ttft:mean:2%")]))).startswith(
        "--fail-on ttft:mean:2%: TTFT mean is worse by"
    )
    # It measures 10 % slower, but the true difference may be smaller.
    assert [
        *broken_gates(found, [parse_gate("ttft:mean:9.5%"), parse_gate("ttft:mean:50"), parse_gate("wer:mean:0.5")])
    ] == []
    rate = compare([run(made(1, errors=300))], [run(made(2))])
    assert [*broken_gates(rate, [parse_gate("requests_per_s:mean:10%"), parse_gate("errors:rate:0.9")])] != []
    nothing = compare([run(made(1))], [run([])])
    assert [*map(gate_line, broken_gates(nothing, [parse_gate("ttft:p95:10%")]))] == [
        "--fail-on ttft:p95:10%: TTFT p95 cannot be compared"
    ]


@pytest.mark.parametrize("text", ["ttft", "ttft:p95", "ttft:p42:1%", "speed:mean:1", "ttft:p95:-1", "ttft:p95:nan%"])
def test_malformed_fail_on_is_rejected(text: str) -> None:
    with pytest.raises(InputError, match="--fail-on"):
        parse_gate(text)


@pytest.mark.parametrize("text", ["ttft:p95:20ms", "ttft:p95:0.02s", "ttft:p95:20", "ttft:p95: 20 ms"])
def test_fail_on_of_a_latency_accepts_units(text: str) -> None:
    gate = parse_gate(text)
    assert (gate.name, gate.limit, gate.relative) == ("ttft_p95", 20, False)


def test_fail_on_of_a_small_latency_requires_a_unit() -> None:
    with pytest.raises(InputError, match=r"--fail-on 'tpot:mean:0\.5': 0\.5 has no unit"):
        parse_gate("tpot:mean:0.5")
    assert parse_gate("tpot:mean:0.5ms").limit == 0.5
    assert parse_gate("tpot:mean:0.5%").limit == 0.005
    assert parse_gate("requests_per_s:mean:0.5").limit == 0.5


def test_summary_has_the_accuracy_of_live_speech_against_one_shot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, word, live in (("live", "sad", True), ("file", "said", False)):
        records = [RealtimeRecord(**msgspec.structs.asdict(one)) if live else one for one in made(1, word=word)]
        how: dict[str, Any] = {"api": "realtime", "realtime": {"dialect": "vllm", "pace": 1.0}} if live else {}
        run_folder(tmp_path / name, records, run_info(workers=[worker_info(ended_at=1061.0)], **how))
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "live"), "--baseline", str(tmp_path / "file")])
    assert main() == 0
    # A quarter of the clips have one of four words wrong.
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Realtime compared with upload")]
    assert said[0].startswith("Realtime compared with upload: WER +6.2 points (95 %: +")
    assert said[0].endswith(", over 40 clips")
    # Speaking takes longer than an upload; that is not slower.
    comparison = json.loads((tmp_path / "live" / "comparison.json").read_text())
    assert {figure["name"] for figure in comparison["figures"]} == {"wer", "cer", "error_rate"}
    assert comparison["warnings"][0].startswith("one side is realtime and the other uploads")
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


def test_live_and_uploading_runs_are_comparable_only_with_their_like() -> None:
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
    assert not any(one_is_realtime([info, info]) for info in (uploads, live, both))
    assert all(one_is_realtime(pair) for pair in ([uploads, live], [uploads, both], [both, live]))


def test_rate_of_a_few_requests_is_same() -> None:
    info = run_info()
    own = [[record(0)], [failure(0, "http_503")]]
    one, none = (Finished(info, records, folder=Path("x")) for records in own)
    assert {figure.word for figure in compare([one], [none]).figures} == {NO_DIFFERENCE}
    assert figures(run(made(1)), run(made(1, errors=600)))["requests_per_s"].word == BETTER

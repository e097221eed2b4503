"""SLOs and goodput: how they are parsed, and how a run is judged by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asr_load.errors import InputError
from asr_load.results.judge_slos import judge_slos
from asr_load.results.normalizers import Scoring
from asr_load.results.slo import Goodput, Slo, check_unit, parse_slo, parse_slos, slo_lines
from harness.options import settings
from harness.records import failure, record


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft:p95:500", "ttft:p95 <= 500 ms"),
        ("itl:p99.9:60", "itl:p99.9 <= 60 ms"),
        ("rtf:max:1", "rtf:max <= 1"),
        ("wer:mean:0.2", "wer:mean <= 0.2"),
        ("errors:rate:0", "errors:rate <= 0"),
    ],
)
def test_slo_is_parsed(text: str, said: str) -> None:
    assert str(parse_slo(text)) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tfft:p95:500", "'tfft' is unknown; use one of ttft, itl"),
        ("ttft", "the limit is missing"),
        ("ttft:p95", "the limit is missing, in ms or with a unit: 500"),
        ("ttft:p95:fast", "'fast' is not a number"),
        ("ttft:p95:-1", "not a number of at least 0"),
        ("ttft:p95:nan", "not a number of at least 0"),
        ("ttft:p95:1:2", "'1:2' is not a number"),
        ("ttft:p100:5", "the statistic of ttft is mean, max or a percentile such as p95, not 'p100'"),
        ("ttft:p0:5", "not 'p0'"),
        ("ttft:median:5", "not 'median'"),
        ("wer:p95:0.2", "the statistic of wer is mean, not 'p95'"),
        ("errors:mean:0.2", "the statistic of errors is rate, not 'mean'"),
    ],
)
def test_malformed_slo_is_rejected(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_slos([text])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", ["ttft", "itl", "tpot", "e2el", "ttfs"])
@pytest.mark.parametrize("limit", ["0.5", "4.9", "1", ".5", "2."])
def test_small_latency_limit_requires_a_unit(metric: str, limit: str) -> None:
    for option, text in (("--slo", f"{metric}:p95:{limit}"), ("--goodput", f"{metric}:{limit}")):
        with pytest.raises(InputError) as caught:
            check_unit(option, text)
        assert str(caught.value).startswith(f"{option} {text!r}: {limit} has no unit. Use {text}s for seconds")
        for unit in ("s", "ms", " s"):
            check_unit(option, text + unit)


@pytest.mark.parametrize(
    "text",
    ["ttft:p95:5", "ttft:p95:0", "ttft:p95:500", "rtf:p95:0.5", "rtf_live:p95:1", "wer:mean:0.1", "errors:rate:0.01"],
)
def test_other_limits_need_no_unit(text: str) -> None:
    check_unit("--slo", text)


@pytest.mark.parametrize(
    "words", [["--slo", "ttft:p95:0.5"], ["--goodput", "ttft:0.5"], ["--goodput", "e2el:900 ttft:1"]]
)
def test_options_with_small_limits_require_a_unit(words: list[str]) -> None:
    with pytest.raises(InputError, match="has no unit"):
        settings(*words)
    made = settings("--slo", "ttft:p95:0.5s", "--goodput", "ttft:2ms e2el:3s")
    # A run stores limits in ms; these are parsed again.
    assert parse_slos(slo.text for slo in [*made.slos, Slo("itl", "mean", 2.0)])[1].limit == 2
    assert Goodput(made.goodput).limits == {"ttft": 2, "e2el": 3000}


def test_duplicate_slo_is_rejected() -> None:
    assert len(parse_slos(["ttft:p95:1", "ttft:p99:1"])) == 2
    with pytest.raises(InputError, match="ttft:p95 is given twice"):
        parse_slos(["ttft:p95:1", "ttft:p95:2"])


def test_slo_percentiles_are_of_all_values_in_ms() -> None:
    random = np.random.default_rng(0)
    records = [record(n, ttft=random.uniform(), itl=random.uniform(size=n).tolist()) for n in range(50)]
    gaps = np.concatenate([item.itl for item in records]) * 1e3
    ttfts = np.array([item.ttft for item in records]) * 1e3
    texts = ["ttft:p95:1", "ttft:mean:1000", "itl:p99.5:1", "itl:max:999999"]
    found = judge_slos(parse_slos(texts), [*records, failure(99, "cut", ttft=99.0)], Scoring())
    wanted = [np.percentile(ttfts, 95), ttfts.mean(), np.percentile(gaps, 99.5), gaps.max()]
    assert [result.value for result in found] == pytest.approx(wanted)
    assert [(result.name, result.limit, result.ok) for result in found] == [
        ("ttft:p95", 1, False),
        ("ttft:mean", 1000, True),
        ("itl:p99.5", 1, False),
        ("itl:max", 999999, True),
    ]


def test_value_equal_to_the_limit_passes() -> None:
    records = [record(ttft=0.5)]
    assert [item.ok for item in judge_slos(parse_slos(["ttft:p95:500", "ttft:mean:499.9"]), records, Scoring())] == [
        True,
        False,
    ]


def test_slos_on_errors_and_accuracy() -> None:
    records = [record(0), record(1, text="he sat"), failure(2, "http_500"), failure(3, "cut")]
    texts = ["errors:rate:0.5", "wer:mean:0.25", "cer:mean:0.01", "rtf:p50:0.2"]
    found = judge_slos(parse_slos(texts), records, Scoring())
    assert [result.ok for result in found] == [True, True, False, True]
    assert (found[0].value, found[1].value) == (0.5, 0.25)


def test_slo_without_a_success_fails() -> None:
    found = judge_slos(parse_slos(["ttft:p95:500", "wer:mean:1", "errors:rate:1"]), [failure(0, "cut")], Scoring())
    assert [(result.value, result.ok) for result in found] == [(None, False), (None, False), (1.0, True)]
    assert not any(result.ok for result in judge_slos(parse_slos(["errors:rate:1", "lag:p50:1"]), [], Scoring()))
    assert slo_lines(found) == [
        "SLO ttft:p95 <= 500 ms: no value, FAIL",
        "SLO wer:mean <= 1: no value, FAIL",
        "SLO errors:rate <= 1: 1, pass",
    ]


def test_goodput_requires_every_limit_of_a_request() -> None:
    goodput = Goodput("ttft:500 e2el:3000  tpot:40")
    whole: dict[str, Any] = {"ttft": 0.5, "e2el": 3.0, "output_tokens": 64}
    assert goodput.meets(record(**whole))
    assert not goodput.meets(record(**{**whole, "ttft": 0.501}))
    assert not goodput.meets(record(**{**whole, "e2el": 3.001}))
    assert not goodput.meets(record(**{**whole, "output_tokens": 63}))  # 2.5 s over 62 tokens
    assert goodput.meets(record(**{**whole, "output_tokens": 1}))
    assert not goodput.meets(failure(0, "cut", ttft=0.1, e2el=0.2))


@pytest.mark.parametrize("text", ["", "itl:5", "ttft", "ttft:x", "ttft:1 ttft:2", "ttft:-1", "ttft:1,tpot:2"])
def test_malformed_goodput_is_rejected(text: str) -> None:
    with pytest.raises(InputError, match="--goodput"):
        Goodput(text)


@pytest.mark.parametrize("word", ["500", "500ms", "500 ms", "0.5s", "5e2", "5e-1s"])
def test_latency_limits_accept_units(word: str) -> None:
    assert parse_slo(f"ttft:p95:{word}") == Slo("ttft", "p95", 500.0)
    if " " not in word:
        assert Goodput(f"ttft:{word}").limits == {"ttft": 500.0}


def test_limits_without_a_unit_and_unknown_units_are_rejected() -> None:
    for text in ("errors:rate:1s", "rtf:p95:1ms", "ttft:p95:500us"):
        with pytest.raises(InputError, match="not a number of at least 0"):
            parse_slo(text)

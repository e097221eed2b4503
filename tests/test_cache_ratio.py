"""Cache ratio: TTFT of repeated clips relative to their first request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asr_load.results.cache_ratio import cache_ratio
from asr_load.results.runfile import Late
from asr_load.results.summary import summarise
from conftest import prepare_clips
from harness.records import health, record, run_info, worker_info
from harness.runs import answer, canned, run


def test_cache_ratio_compares_repeated_clips_with_their_first_request() -> None:
    first = [record(n, clip=f"c{n}", ttft=0.4 * (n + 1), started_at=1000.0 + n) for n in range(4)]
    again = [record(n, clip=f"c{n}", ttft=0.1 * (n + 1), started_at=2000.0 + n) for n in range(4)]
    found = cache_ratio([*again, *first], [*again, *first])
    assert found is not None
    assert [found.ratio, found.low, found.high] == pytest.approx([0.25] * 3)
    assert found.clips == 4
    assert cache_ratio(first, first) is None
    few = [*first[:2], *again[:2]]
    assert cache_ratio(few, few) is None
    uneven = [record(n, clip=f"c{n}", ttft=0.1 * (n + 1) * (1 + n), started_at=3000.0 + n) for n in range(4)]
    found = cache_ratio([*first, *uneven], [*first, *uneven])
    assert found is not None
    assert found.low < found.ratio < found.high


def test_cache_ratio_needs_runs_that_repeat_bytes() -> None:
    records = [record(n, clip=f"c{n % 4}", started_at=1000.0 + n) for n in range(8)]
    for unique, expected in (("dither", False), ("once", True), ("none", True)):
        assert (summarise(records, run_info(unique=unique)).cache_ratio is not None) is expected


@pytest.mark.parametrize("away", [{"warmup": True}, {"started_at": 900.0}], ids=["warm-up", "late"])
def test_cache_ratio_skips_clips_whose_first_request_is_excluded(away: dict[str, Any]) -> None:
    """Four clips are each sent three times. The first request of one of them is excluded."""
    records = [record(n, clip=f"c{n % 4}", started_at=1000.0 + n, ttft=0.4 if n < 4 else 0.1) for n in range(12)]
    records[0] = record(0, clip="c0", ttft=0.4, **away)
    late = [Late(900.0, 901.0, 0.4, 0.2)]
    info = run_info(unique="none", workers=[worker_info(ended_at=1020.0, health=health(late=late))])
    found = summarise(records, info).cache_ratio
    assert found is not None
    assert [found.ratio, found.low, found.high] == pytest.approx([0.25] * 3)
    assert found.clips == 3


@pytest.mark.parametrize(("unique", "kinds", "of_both"), [("dither", 8, 16), ("once", 4, 8), ("none", 4, 4)])
def test_unique_option_determines_which_bytes_repeat(unique: str, kinds: int, of_both: int, tmp_path: Path) -> None:
    clips = prepare_clips(tmp_path, {f"clip{number}": 0.5 for number in range(4)})
    audio: list[set[str]] = []
    for test in range(2):
        with canned([answer("a b", length=True)] * 8) as (host, got):
            done = run(host, clips, tmp_path / f"r{test}", "-u", "1", "--requests", "8", "--unique", unique)
        assert done.code == 0, done.err
        bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in got]
        audio.append({body["messages"][0]["content"][0]["audio_url"]["url"] for body in bodies})
    assert [len(each) for each in audio] == [kinds] * 2
    assert len(audio[0] | audio[1]) == of_both

"""The names of metrics, against those of released engines.

tests/families/ENGINE-VERSION.txt lists the metrics of a release with their types, as on its page after a few requests:

    curl -s HOST/metrics | grep '^# TYPE' | cut -d' ' -f3- | grep -vE '^(python_|process_)|_created ' | sort -u
"""

from __future__ import annotations

import pytest

from asr_load.engine.families import COUNTERS, ENGINES, GAUGES, HISTOGRAMS, Meaning
from conftest import CHECKOUT

RELEASES = {"vllm-0.32": ("vllm:", "http_"), "sglang-0.5.23": ("sglang:",)}

ELSEWHERE = {
    # Renamed since.
    "vllm:gpu_cache_usage_perc",
    "vllm:gpu_prefix_cache_hits_total",
    "vllm:time_per_output_token_seconds",
    # Only where requests are retracted, and in encoder servers.
    "sglang:num_retracted_requests_total",
    "sglang:encoder_cache_hit_files_total",
    "sglang:encoder_cache_total_files_total",
}
"""Names that the page of a release lacks."""


def released(name: str) -> dict[str, str]:
    """The metrics of a release, and their types."""
    lines = (CHECKOUT / "tests" / "families" / f"{name}.txt").read_text().splitlines()
    return dict(line.split() for line in lines)


def names(meanings: tuple[Meaning, ...], prefixes: tuple[str, ...]) -> set[str]:
    return {each.name for meaning in meanings for each in meaning.families if each.name.startswith(prefixes)}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("meanings", "type"), [(GAUGES, "gauge"), (COUNTERS, "counter"), (HISTOGRAMS, "histogram")])
def test_names_and_types_are_those_of_a_release(release: str, meanings: tuple[Meaning, ...], type: str) -> None:
    found, wanted = released(release), names(meanings, RELEASES[release]) - ELSEWHERE
    assert {name: found.get(name) for name in wanted} == dict.fromkeys(wanted, type)


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_has_one_name_for_each_of_its_meanings(release: str) -> None:
    found = released(release)
    for meaning in (*GAUGES, *COUNTERS, *HISTOGRAMS):
        present = {family.name for family in meaning.families if family.name in found}
        assert len(present) <= 1, meaning.name


def test_each_meaning_has_its_own_name_and_metrics() -> None:
    meanings = (*GAUGES, *COUNTERS, *HISTOGRAMS)
    assert len({meaning.name for meaning in meanings}) == len(meanings)
    listed = [name for meaning in meanings for name in {family.name for family in meaning.families}]
    assert sorted(listed) == sorted(set(listed))


def test_each_engine_has_a_metric() -> None:
    listed = {family.name for meaning in (*GAUGES, *COUNTERS, *HISTOGRAMS) for family in meaning.families}
    for prefix in ENGINES:
        assert any(name.startswith(prefix) for name in listed), prefix

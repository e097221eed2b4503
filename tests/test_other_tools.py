"""Options of other tools: accepted under their names, or answered with ours."""

from __future__ import annotations

import re

import pytest
from locust.argument_parser import get_parser

import locustfiles.capacity
import locustfiles.shapes  # noqa: F401 (adds our options to Locust's parser)
from asr_load.settings.other_tools import ADVICE
from harness.options import settings


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["--requests", "7"], ["--num-prompts", "7"]),
        (["--data", "d"], ["--dataset-path", "d"]),
        (["--results", "r"], ["--result-dir", "r"]),
        (["--extra-body", '{"a": 1}'], ["--extra-request-body", '{"a": 1}']),
        (["--warmup-requests", "3"], ["--num-warmups", "3"]),
        (["--goodput", "ttft:500 tpot:40"], ["--goodput", "ttft:500", "tpot:40"]),
    ],
)
def test_options_named_as_in_other_benchmarks(one: list[str], other: list[str]) -> None:
    assert settings(*one) == settings(*other) != settings()


def test_advice_for_options_of_other_tools_covers_none_of_ours() -> None:
    parser = get_parser(default_config_files=[])
    assert not ADVICE.keys() & parser._option_string_actions.keys()


def test_advice_for_options_of_other_tools_names_existing_options() -> None:
    ours = get_parser(default_config_files=[])._option_string_actions.keys() | {"--dataset", "--out"}
    for advice in ADVICE.values():
        assert set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", advice)) <= ours, advice

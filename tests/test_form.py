"""Fields of the web form: parsed like their options, anew for each test, all or none."""

from __future__ import annotations

from argparse import Namespace

import pytest
from locust.argument_parser import get_parser

import asr_load.load.startup  # noqa: F401 (adds the harness's options to Locust's parser)
from asr_load.errors import InputError
from asr_load.options.form import FieldError, Form, changed, field_of, form_fields, form_groups, read_form
from asr_load.options.table import OPTIONS

WORDS = {
    "user_count": ("7", "num_users", 7),
    "spawn_rate": ("2.5", "spawn_rate", 2.5),
    "run_time": ("10s", "run_time", 10),
    "host": ("http://gpu:1", "host", "http://gpu:1"),
    "data": ("there", "data", "there"),
    "api": ("transcriptions", "api", "transcriptions"),
    "model": ("m", "model", "m"),
    "prompt": ("p", "prompt", "p"),
    "max_tokens": ("5", "max_tokens", 5),
    "unique": ("none", "unique", "none"),
    "api_key": ("sk-1", "api_key", "sk-1"),
    "request_rate": ("3", "request_rate", "3"),
    "arrivals": ("constant", "arrivals", "constant"),
}


@pytest.fixture
def options() -> Namespace:
    parsed: Namespace = get_parser(default_config_files=[]).parse_args([])
    return parsed


@pytest.mark.parametrize("field", WORDS)
def test_each_form_field_is_read_twice(options: Namespace, field: str) -> None:
    word, name, value = WORDS[field]
    for _ in range(2):  # values left by the first test must not affect the second
        options = read_form(Form({field: word}), options)
        assert getattr(options, name) == value
        assert type(getattr(options, name)) is type(value)


@pytest.mark.parametrize(
    ("field", "word", "said"),
    [
        ("user_count", "0", "the number of users must be a whole number from 1"),
        ("user_count", "4.5", "not '4.5'"),
        ("user_count", "9" * 400, "the number of users"),
        ("user_count", "9" * 5000, "the number of users"),
        ("spawn_rate", "0", "the spawn rate must be a number above 0"),
        ("spawn_rate", "nan", "the spawn rate must be a number above 0"),
        ("spawn_rate", "inf", "the spawn rate must be a number above 0"),
        ("run_time", "soon", "the run time must be a duration"),
        ("run_time", "0", "the run time must be a duration"),
        ("run_time", "9" * 400, "the run time must be a duration"),
        ("run_time", "9" * 400 + "h", "the run time must be a duration"),
        ("max_tokens", "many", "--max-tokens: invalid int value: 'many'"),
        ("max_tokens", "", "--max-tokens: invalid int value: ''"),
        ("api", "telepathy", "--api: invalid choice: 'telepathy' (choose from"),
        ("results", "/etc", "the form has no field 'results'"),
        ("html_file", "x", "the form has no field 'html_file'"),
        ("help", "x", "the form has no field 'help'"),
        ("asr_fleet", "x", "the form has no field 'asr_fleet'"),
    ],
)
def test_invalid_form_field_gives_a_one_line_error_and_changes_nothing(
    options: Namespace, field: str, word: str, said: str
) -> None:
    before = dict(vars(options))
    with pytest.raises(InputError) as refused:
        read_form(Form([("model", "another"), (field, word)]), options)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 200
    assert vars(options) == before


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("--data /x: there is no such folder; prepare it: prepare.py --out /x", "data"),
        ("--slo 'ttft': use METRIC:STAT:LIMIT", "slo"),
        ("the server has several models; choose one with --model: a, b", "model"),
        ("a trial request failed: connection refused by http://h:1: start the server. Add --no-preflight", "host"),
        ("--host http://h:1/x has a path", "host"),
        ("no worker is connected: start one with locust --worker --master-host ADDRESS", ""),
    ],
)
def test_error_belongs_to_the_field_that_it_names(line: str, field: str) -> None:
    assert field_of(InputError(line), "http://h:1") == field
    assert field_of(FieldError("requests", line)) == "requests"


def test_invalid_value_names_its_field(options: Namespace) -> None:
    with pytest.raises(FieldError) as refused:
        read_form(Form([("model", "m"), ("user_count", "0")]), options)
    assert field_of(refused.value) == "user_count"


def test_each_field_has_a_label() -> None:
    fields = {field.name: field for field in form_fields()}
    assert {*WORDS, *(name for names in form_groups().values() for name in names)} == set(fields)
    assert all(option.label for option in OPTIONS if option.in_form)
    assert (fields["packet_ms"].label, fields["slo"].label) == ("Packet length (ms)", "Limits (SLO)")
    assert next(iter(fields)) == "data"
    folded = [field.group for field in fields.values()]
    assert folded == sorted(folded, key=bool)


def test_empty_run_time_is_no_limit(options: Namespace) -> None:
    options.run_time = 10
    assert read_form(Form({"run_time": ""}), options).run_time is None


def test_changed_fields_of_a_running_test_are_listed(options: Namespace) -> None:
    same = read_form(Form({"user_count": "9", "max_tokens": str(options.max_tokens)}), options)
    assert changed(same, options) == []
    assert changed(read_form(Form({"max_tokens": "9", "model": "x"}), options), options) == ["model", "max_tokens"]

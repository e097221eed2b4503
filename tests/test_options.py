"""Bad options are refused before anything is sent, in one line that says what would be right."""

from __future__ import annotations

from argparse import Namespace

import pytest
from locust.argument_parser import LocustArgumentParser

from asr_load.errors import InputError
from asr_load.load.options import Settings, add_options, read_settings

HOST = "http://127.0.0.1:30000"


def parse(*words: str) -> Namespace:
    parser = LocustArgumentParser()
    add_options(parser)
    options: Namespace = parser.parse_args(list(words))
    return options


def settings(*words: str, host: str | None = HOST) -> Settings:
    return read_settings(parse(*words), host)


@pytest.mark.parametrize(
    ("words", "host", "said"),
    [
        ([], None, "--host (none) is not an address"),
        ([], "127.0.0.1:30000", "is not an address like"),
        ([], "http://h:1/v1", "--host carries no path"),
        ([], "http://[bad", "is not an address like"),
        ([], "http://h:abc", "is not an address like"),
        ([], "http://h:99999", "is not an address like"),
        (["--rate-stages", "10s:0,5s:0"], HOST, "some rate must be above 0"),
        (["--seed", "-1"], HOST, "--seed must be 0 or more"),
        (["--seed", "7"], HOST, "add --order shuffle"),
        (["--requests", "-1"], HOST, "--requests must be 0"),
        (["--max-tokens", "0"], HOST, "--max-tokens must be 1 or more"),
        (["--stall-timeout", "0"], HOST, "--stall-timeout must be above 0"),
        (["--total-timeout", "inf"], HOST, "--total-timeout must be above 0"),
        (["--extra-body", "[1]"], HOST, "--extra-body is not a JSON object"),
        (["--extra-body", "{"], HOST, "--extra-body is not a JSON object"),
        (
            ["--omit", "top_p", "--extra-body", '{"top_p": 1}'],
            HOST,
            "--omit leaves out 'top_p', which --extra-body sets",
        ),
        (["--header", "no-value"], HOST, "--header takes NAME=VALUE"),
        (["--header", "X-A=\n"], HOST, ""),
        (["--header", "X-A=ü"], HOST, "characters that a header cannot carry"),
        (["--request-rate", "0"], HOST, "--request-rate must be above 0"),
        (["--request-rate", "-3"], HOST, "--request-rate must be above 0"),
        (["--request-rate", "fast"], HOST, "--request-rate takes requests per second, not 'fast'"),
        (["--request-rate", "1", "--rate-stages", "1s:1"], HOST, "exclude each other"),
        (["--rate-stages", "60s"], HOST, "is no stage; allowed is"),
        (["--arrivals", "constant"], HOST, "needs a rate: add --request-rate or --rate-stages"),
        (["--arrival-trace", "/no/where.csv"], HOST, "cannot be read"),
        (["--warmup-requests", "-1"], HOST, "--warmup-requests must be 0 or more"),
        (["--warmup-time", "-1"], HOST, "--warmup-time must be 0 seconds or more"),
        (["--cool-down-time", "inf"], HOST, "--cool-down-time must be 0 seconds or more"),
        (["--api-key", "ü"], HOST, "characters that a header cannot carry"),
    ],
)
def test_bad_options(words: list[str], host: str | None, said: str) -> None:
    if not said:
        assert settings(*words).headers == {"X-A": ""}  # white space at the ends is no part of a header
        return
    with pytest.raises(InputError) as caught:
        settings(*words, host=host)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trailing_slash_is_no_path() -> None:
    assert settings(host="https://gpu.example:8443/").host == "https://gpu.example:8443"


def test_fields_to_leave_out() -> None:
    made = settings("--omit", "stream_options, max_tokens,", "--extra-body", '{"top_k": 3, "seed": null}')
    assert made.extra_body == {"top_k": 3, "seed": None, "stream_options": None, "max_tokens": None}


def test_headers_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    made = settings("--header", "X-Route=a=b", "--header", "X-Other=2")
    assert made.headers == {"X-Route": "a=b", "X-Other": "2", "Authorization": "Bearer sk-environment"}
    assert settings("--api-key", "sk-option").headers == {"Authorization": "Bearer sk-option"}
    assert "sk-environment" not in repr(made)


def test_the_key_of_the_environment_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    # Locust writes defaults into its page.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    assert parse().api_key == ""


def test_the_value_of_a_bad_header_is_not_repeated() -> None:
    with pytest.raises(InputError) as caught:
        settings("--header", "Author ization=Bearer sk-secret")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["api", "unique", "order", "arrivals"])
def test_a_word_from_the_form_that_is_no_choice(name: str) -> None:
    options = parse()
    setattr(options, name, "foo")
    with pytest.raises(InputError, match=f"--{name} 'foo' is none of"):
        read_settings(options, HOST)

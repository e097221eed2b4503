"""Invalid options are refused before anything is sent, with a one-line error that says what to do."""

from __future__ import annotations

import pytest

import locustfiles.capacity
import locustfiles.shapes  # noqa: F401 (adds our options to Locust's parser)
from asr_load.errors import InputError
from asr_load.settings.credentials import Secrets
from asr_load.settings.host import split_host
from asr_load.settings.settings import read_settings
from harness.options import HOST, parse, settings


@pytest.mark.parametrize(
    ("words", "host", "said"),
    [
        ([], None, "--host is missing: give the address of the server, for example --host http://127.0.0.1:30000"),
        ([], "", "--host is missing"),
        ([], "127.0.0.1:30000", "is not an address such as http://127.0.0.1:30000: use --host http://127.0.0.1:30000"),
        (
            [],
            "gpu:8000/v1",
            "--host gpu:8000/v1 is not an address such as http://127.0.0.1:30000: use --host http://gpu:8000",
        ),
        ([], "ftp://h:1", "--host ftp://h:1 is not an address such as http://127.0.0.1:30000"),
        ([], "http://h:1/v2", "--host cannot have this path: use --host http://h:1 --endpoint /v2/v1/chat/completions"),
        (
            [],
            "http://h:1/v1?a=b",
            "--host cannot have this path: use --host http://h:1 --endpoint '/v1/chat/completions?a=b'",
        ),
        ([], "http://[bad", "is not an address such as"),
        ([], "http://h:abc", "is not an address such as"),
        ([], "http://h:99999", "is not an address such as"),
        (["--rate-stages", "10s:0,5s:0"], HOST, "at least one rate must be above 0"),
        (["--seed", "-1"], HOST, "--seed must be 0 or more"),
        (["--seed", "7", "--order", "sequential"], HOST, "--seed has no effect with --order sequential"),
        (["--requests", "-1"], HOST, "--requests must be 0"),
        (["--temperature", "-1"], HOST, "--temperature must be from 0 to 2, not -1.0"),
        (["--temperature", "nan"], HOST, "--temperature must be from 0 to 2, not nan"),
        (["--max-tokens", "0"], HOST, "--max-tokens must be 1 or more"),
        (["--stall-timeout", "0"], HOST, "--stall-timeout must be above 0"),
        (["--total-timeout", "inf"], HOST, "--total-timeout must be above 0"),
        (["--extra-body", "[1]"], HOST, "--extra-body is not a JSON object"),
        (["--extra-body", "{"], HOST, "--extra-body is not a JSON object"),
        (
            ["--omit", "top_p", "--extra-body", '{"top_p": 1}'],
            HOST,
            "--omit removes 'top_p', but --extra-body sets it",
        ),
        (["--header", "no-value"], HOST, "--header needs 'NAME: VALUE' or NAME=VALUE"),
        (["--header", "X-A=\n"], HOST, ""),
        (["--header", "X-A=ü"], HOST, "characters that are not allowed in a header"),
        (["--request-rate", "0"], HOST, "--request-rate must be above 0"),
        (["--request-rate", "-3"], HOST, "--request-rate must be above 0"),
        (["--request-rate", "fast"], HOST, "--request-rate must be a number of requests per second, not 'fast'"),
        (["--request-rate", "1", "--rate-stages", "1s:1"], HOST, "exclude each other"),
        (["--rate-stages", "60s"], HOST, "is not a stage; use"),
        (["--arrivals", "constant"], HOST, "needs a rate: add --request-rate or --rate-stages"),
        (["--arrival-trace", "/no/where.csv"], HOST, "cannot be read"),
        (["--warmup-requests", "-1"], HOST, "--warmup-requests must be 0 or more"),
        (["--warmup-time", "-1"], HOST, "--warmup-time must be 0 seconds or more"),
        (["--trim-end", "inf"], HOST, "--trim-end must be 0 seconds or more"),
        (["--api-key", "ü"], HOST, "characters that are not allowed in a header"),
    ],
)
def test_invalid_option_gives_a_one_line_error(words: list[str], host: str | None, said: str) -> None:
    if not said:
        assert settings(*words).headers == {"X-A": ""}  # white space at the ends is not part of a header
        return
    with pytest.raises(InputError) as caught:
        settings(*words, host=host)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trailing_slash_of_host_is_ignored() -> None:
    assert settings(host="https://gpu.example:8443/").host == "https://gpu.example:8443"


def test_omit_removes_fields_of_the_body() -> None:
    made = settings("--omit", "stream_options, max_tokens,", "--extra-body", '{"top_k": 3, "seed": null}')
    assert made.request.fields.extra == {"top_k": 3, "seed": None, "stream_options": None, "max_tokens": None}


def test_headers_contain_the_key_of_option_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    made = settings("--header", "X-Route=a=b", "--header", "X-Other=2")
    assert made.headers == {"X-Route": "a=b", "X-Other": "2", "Authorization": "Bearer sk-environment"}
    assert settings("--api-key", "sk-option").headers == {"Authorization": "Bearer sk-option"}
    assert "sk-environment" not in repr(made)


def test_key_of_the_environment_is_not_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    # Locust writes defaults into its page.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    assert parse().api_key == ""


def test_value_of_an_invalid_header_is_not_printed() -> None:
    with pytest.raises(InputError) as caught:
        settings("--header", "Author ization=Bearer sk-secret")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["api", "unique", "order", "arrivals"])
def test_invalid_choice_in_the_form_is_refused(name: str) -> None:
    options = parse()
    setattr(options, name, "foo")
    with pytest.raises(InputError, match=f"--{name} 'foo' is unknown; use one of"):
        read_settings(options, HOST, Secrets())


@pytest.mark.parametrize("word", ["X-Route=a:b=c", "X-Route: a:b=c", " X-Route : a:b=c ", "X-Route:a:b=c"])
def test_header_in_curls_form(word: str) -> None:
    assert settings("--header", word).headers == {"X-Route": "a:b=c"}


def test_seed_implies_shuffled_order() -> None:
    assert not settings().shuffle
    assert settings("--seed", "7").shuffle
    assert settings("--order", "shuffle").shuffle
    assert not settings("--seed", "7", "--request-rate", "3").shuffle  # the seed applies to the arrivals


@pytest.mark.parametrize(
    ("pasted", "cure"),
    [("http://gpu:30000", "gpu:30000"), ("http://gpu:30000/v1/chat/completions", "gpu:30000"), ("b:1,ws://a", "a")],
)
def test_url_as_upstream_is_refused_with_the_address(pasted: str, cure: str) -> None:
    with pytest.raises(InputError) as refused:
        settings("--upstream", pasted)
    assert (
        str(refused.value)
        == f"--upstream {pasted.rpartition(',')[2]} is not an address such as 10.0.0.7:30000: use {cure}"
    )
    settings("--upstream", cure)


@pytest.mark.parametrize("proxy", ["http://p:99999", "http://p:port", "http://[p", "http://:3128", "socks5://p:1"])
def test_invalid_proxy_is_refused(proxy: str) -> None:
    with pytest.raises(InputError) as refused:
        settings("--proxy", proxy)
    assert str(refused.value) == f"the proxy {proxy} is not an address such as http://proxy:3128"


@pytest.mark.parametrize("host", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_host_and_endpoint_of_requests(host: str) -> None:
    made = settings(host=host)
    assert (made.host, made.endpoint) == ("http://h:1", "/v1/chat/completions")
    made = settings("--endpoint", "/openai/deployments/x/chat/completions?api-version=1", host=host)
    assert made.endpoint == "/openai/deployments/x/chat/completions?api-version=1"


def test_user_and_password_of_the_host_become_a_header() -> None:
    basic = "bWU6cEBzcw=="  # me:p@ss
    for host in ("http://me:p%40ss@h:1/v1", "http://me:p@ss@h:1/v1"):
        assert split_host(host) == ("http://h:1/v1", basic)
    assert split_host("http://h:1/a@b") == ("http://h:1/a@b", "")
    assert split_host(None) == (None, "")
    made = read_settings(parse(), HOST, Secrets(basic=basic))
    assert made.headers == {"Authorization": f"Basic {basic}"}
    assert {basic, "p@ss"} <= set(made.secrets)
    with pytest.raises(InputError, match="a user and a password, and there is an API key"):
        read_settings(parse(), HOST, Secrets("sk-key", basic))


def test_metadata_is_parsed() -> None:
    assert settings("--metadata", "gpu=H100 x 8", "--metadata", "note=a=b").metadata == {
        "gpu": "H100 x 8",
        "note": "a=b",
    }
    with pytest.raises(InputError, match="--metadata gpu is given twice"):
        settings("--metadata", "gpu=1", "--metadata", "gpu=2")

"""--server-metrics: which pages are polled, and who receives a secret."""

from __future__ import annotations

import pytest

from asr_load.engine.endpoint import PATHS
from asr_load.errors import InputError
from asr_load.http.transport import Transport
from asr_load.settings.server_metrics import metrics_pages

HOST = "http://127.0.0.1:30000"
HEADERS = {"Authorization": "Bearer secret-key"}
TRANSPORT = Transport(verify=False, cert="client.pem", proxy="http://proxy:3128", proxy_basic="basic")


def test_without_the_option_the_pages_of_the_host_are_tried() -> None:
    (page,) = metrics_pages([], HOST, HEADERS, TRANSPORT, ("secret-key",))
    assert [source.url for source in page] == [HOST + path for path in PATHS]
    assert {(source.transport, source.secrets, *source.headers.values()) for source in page} == {
        (TRANSPORT, ("secret-key",), "Bearer secret-key")
    }


def test_each_replica_has_a_page() -> None:
    transport = Transport(upstream=(("10.0.0.1", 1), ("10.0.0.2", 2)))
    pages = metrics_pages([], HOST, {}, transport, ())
    assert [page[0].name for page in pages] == [f"{HOST}/metrics at 10.0.0.1:1", f"{HOST}/metrics at 10.0.0.2:2"]
    assert [page[0].transport.upstream for page in pages] == [(("10.0.0.1", 1),), (("10.0.0.2", 2),)]


@pytest.mark.parametrize(
    ("word", "url"),
    [
        ("http://gpu:9400/metrics", "http://gpu:9400/metrics"),
        ("http://gpu:9400", "http://gpu:9400/metrics"),
        ("http://gpu:9400/", "http://gpu:9400/metrics"),
        (f"{HOST}/prometheus/metrics?model=a", f"{HOST}/prometheus/metrics?model=a"),
    ],
)
def test_named_page(word: str, url: str) -> None:
    ((source,),) = metrics_pages([word], HOST, {}, Transport(), ())
    assert source.url == source.name == url


def test_no_other_server_receives_a_secret() -> None:
    pages = metrics_pages(["http://127.0.0.1:9400", HOST], HOST, HEADERS, TRANSPORT, ("secret-key",))
    (other,), (own,) = pages
    assert (other.headers, other.secrets, other.transport) == ({}, (), Transport(verify=False))
    assert (own.headers, own.secrets, own.transport) == (HEADERS, ("secret-key",), TRANSPORT)


def test_password_of_a_page_goes_to_it_and_is_not_shown() -> None:
    ((source,),) = metrics_pages(["http://me:pass@gpu:9400/metrics?token=abc&x=1"], HOST, HEADERS, TRANSPORT, ())
    assert source.headers == {"Authorization": "Basic bWU6cGFzcw=="}
    assert source.url == "http://gpu:9400/metrics?token=abc&x=1"
    assert source.name == "http://gpu:9400/metrics?token=***&x=1"
    assert {"bWU6cGFzcw==", "abc"} <= set(source.secrets)


def test_none_turns_polling_off() -> None:
    assert metrics_pages(["none"], HOST, {}, Transport(), ()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none", HOST], "--server-metrics none and a page exclude each other; remove one of them"),
        (
            ["gpu:9400/metrics"],
            "--server-metrics gpu:9400/metrics is not an address such as http://127.0.0.1:9400/metrics:"
            " use --server-metrics http://gpu:9400/metrics",
        ),
        (["ftp://gpu"], "--server-metrics ftp://gpu is not an address such as http://127.0.0.1:9400/metrics"),
        (["http://[::1"], "--server-metrics http://[::1 is not an address such as http://127.0.0.1:9400/metrics"),
        (["http://a:b/c@d"], "--server-metrics http://***@d is not an address"),
        ([""], "--server-metrics  is not an address such as http://127.0.0.1:9400/metrics"),
    ],
)
def test_wrong_page(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        metrics_pages(words, HOST, HEADERS, Transport(), ())
    assert str(error.value).startswith(message)

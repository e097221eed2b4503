"""HTTPS: trusted authorities, client certificates, and the errors for invalid certificates."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from asr_load.errors import InputError
from asr_load.http.failure import ENDED, NO_AUTHORITY
from asr_load.http.transport import BUNDLES, Transport, read_transport
from harness.fleets import info
from harness.peer import READERS, ca_file, server_pem
from harness.runs import Run, answer, canned, run
from harness.serving import run_to_end, serve
from harness.stamps import late_by


@pytest.fixture(autouse=True)
def _no_authority_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BUNDLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


def serving(authority: trustme.CA, *names: str, **how: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("127.0.0.1",)), **how).configure_cert(context)
    return context


def one(clips: Path, folder: Path, context: ssl.SSLContext | None, *words: str, fails: bool = False) -> Run:
    """One request to a server with this context. With `fails`, no request reaches it."""
    with canned([] if fails else [answer("one", length=True)], context, refuses=fails) as (host, _):
        return run(host.replace("http:", "https:"), clips, folder / "r", "-u", "1", "--requests", "1", *words)


@pytest.mark.parametrize("how", ["--ca", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_named_authority_is_trusted(
    clips: Path, tmp_path: Path, authority: trustme.CA, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    file = str(tmp_path / "ca.pem")
    if how != "--ca":
        monkeypatch.setenv(how, file)
    done = one(clips, tmp_path, serving(authority), *(("--ca", file) if how == "--ca" else ()))
    assert [record["text"] for record in done.records] == ["one"]
    assert not info(done)["insecure"]


def test_insecure_accepts_any_certificate_and_reports_it(clips: Path, tmp_path: Path, authority: trustme.CA) -> None:
    done = one(clips, tmp_path, serving(authority, "elsewhere.example"), "--insecure")
    assert [record["text"] for record in done.records] == ["one"]
    assert info(done)["insecure"]
    assert "the server's certificate was not verified (--insecure)" in done.out
    assert "InsecureRequestWarning" not in done.err


HTTPS = "https://speech.example"

WRONG = {
    "expired": "the server's certificate has expired",
    "another name": "the server's certificate is for another name than --host",
    "unknown authority": NO_AUTHORITY,
    "client certificate required": "the server requires a client certificate (--cert FILE)",
    "no TLS": "the server does not speak TLS on this port (use http:// instead of https://?)",
}


@pytest.mark.parametrize("kind", WRONG)
def test_certificate_problem_is_explained(
    clips: Path, tmp_path: Path, authority: trustme.CA, ca: str, kind: str
) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    contexts: dict[str, Callable[[], ssl.SSLContext | None]] = {
        "expired": lambda: serving(authority, not_after=yesterday, not_before=yesterday - timedelta(days=9)),
        "another name": lambda: serving(authority, "elsewhere.example"),
        "unknown authority": lambda: serving(trustme.CA()),
        "client certificate required": lambda: mutual(authority),
        "no TLS": lambda: None,
    }
    done = one(clips, tmp_path, contexts[kind](), "--ca", ca, fails=True)
    (record,) = done.records
    assert record["outcome"] == "connect"
    assert record["error"] in (WRONG[kind], ENDED if kind == "client certificate required" else "")


def mutual(authority: trustme.CA) -> ssl.SSLContext:
    context = serving(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("files", [1, 2])
def test_client_certificate_is_sent(clips: Path, tmp_path: Path, authority: trustme.CA, ca: str, files: int) -> None:
    own = authority.issue_cert("tester.example")
    if files == 1:
        own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
        word = str(tmp_path / "own.pem")
    else:
        own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        own.private_key_pem.write_to_path(tmp_path / "key.pem")
        word = f"{tmp_path / 'cert.pem'}, {tmp_path / 'key.pem'}"
    done = one(clips, tmp_path, mutual(authority), "--ca", ca, "--cert", word)
    assert [record["text"] for record in done.records] == ["one"], done.records


def test_invalid_certificate_files_are_refused_at_start(tmp_path: Path, ca: str) -> None:
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(InputError, match=r"--ca .*text contains no certificate \(PEM\)"):
        read_transport(HTTPS, str(tmp_path / "text"), "", insecure=False)
    with pytest.raises(InputError, match="--ca /nowhere cannot be read: No such file"):
        read_transport(HTTPS, "/nowhere", "", insecure=False)
    with pytest.raises(InputError, match=r"--cert .* must be a certificate and its key"):
        read_transport(HTTPS, "", ca, insecure=False)
    with pytest.raises(InputError, match="--cert /nowhere cannot be read"):
        read_transport(HTTPS, "", "/nowhere", insecure=False)
    with pytest.raises(InputError, match="so --ca has no effect"):
        read_transport(HTTPS, ca, "", insecure=True)
    assert read_transport(HTTPS, "", "", insecure=False) == Transport()


def test_certificate_file_of_the_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    with pytest.raises(InputError, match="SSL_CERT_FILE /nowhere cannot be read"):
        read_transport(HTTPS, "", "", insecure=False)
    assert read_transport(HTTPS, "", "", insecure=True) == Transport(verify=False)
    assert read_transport("http://speech.example", "", "", insecure=False) == Transport()


def test_key_with_a_passphrase_is_refused_without_a_prompt(tmp_path: Path, authority: trustme.CA) -> None:
    from cryptography.hazmat.primitives import serialization

    own = authority.issue_cert("tester.example")
    key = serialization.load_pem_private_key(own.private_key_pem.bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    (tmp_path / "own.pem").write_bytes(own.cert_chain_pems[0].bytes() + pem)
    with pytest.raises(InputError, match="the key has a passphrase"):
        read_transport(HTTPS, "", str(tmp_path / "own.pem"), insecure=False)


@pytest.mark.parametrize("reader", READERS)
def test_latencies_over_https_are_those_of_the_server(clips: Path, tmp_path: Path, reader: str) -> None:
    stamps = tmp_path / "stamps.jsonl"
    script = ("--engine", "scripted", "--tokens", "4", "--ttft-ms", "100", "--itl-ms", "200")
    with serve(*script, "--ssl-certfile", server_pem(), "--stamps", str(stamps)) as host:
        words = ("-u", "8", "--requests", "16", "--ca", ca_file(), "--reader", reader)
        done = run(host, clips, tmp_path / "r", *words)
    assert host.startswith("https://")
    assert done.code == 0, done.out + done.err
    assert all(record["output_tokens"] == record["chunks"] == 4 for record in done.records)
    assert done.summary["connections"]["opened"] == 8
    late = late_by(done, stamps)
    assert min(late) > 0
    # The kernel stamps each chunk, whatever else the machine does, if a reader reads it before the next one arrives.
    assert np.median(late) < 0.001


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ssl-keyfile", "key.pem"], "--ssl-keyfile needs --ssl-certfile"),
        (["--ssl-certfile", "/nowhere"], "--ssl-certfile /nowhere is not a certificate with its key (PEM)"),
        (["--ssl-certfile", __file__], f"--ssl-certfile {__file__} is not a certificate with its key (PEM)"),
    ],
)
def test_embedded_server_without_a_valid_certificate_does_not_start(words: list[str], said: str) -> None:
    done = run_to_end("--engine", "scripted", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr

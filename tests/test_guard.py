"""Access to the web UI: pages of other sites are refused, whatever name they use for the host."""

from __future__ import annotations

import csv
import http.client
import io
import re
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from asr_load.errors import InputError
from asr_load.options.form import Form, read_form
from asr_load.settings.credentials import ROUTE, Credentials
from asr_load.web.guard import guarded
from harness.options import parse
from harness.patience import PATIENCE_S
from harness.runs import answer, canned
from harness.serving import wait_until
from harness.ui import ui

EVIL, OWN = "http://evil.example", "http://127.0.0.1:8"


def status(web_host: str = "127.0.0.1", *names: str, method: str = "GET", path: str = "/", **headers: str) -> str:
    """Status of the response, from the guard or the application behind it."""

    def app(_: object, start: object) -> list[bytes]:
        start("200 OK", [("Access-Control-Allow-Origin", EVIL), ("X-Own", "1")])  # type: ignore[operator]
        return [b"in"]

    found: list[str] = []

    def start(line: str, sent: list[tuple[str, str]]) -> None:
        found.append(line)
        assert not any(name.lower().startswith("access-control") for name, _ in sent)

    environ = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    body = guarded(app, web_host, names)({**environ, "REQUEST_METHOD": method, "PATH_INFO": path}, start)
    assert (b"in" in b"".join(body)) == (found == ["200 OK"])
    return found[0][:3]


@pytest.mark.parametrize(
    ("web_host", "host", "code"),
    [
        ("127.0.0.1", "127.0.0.1:8089", "200"),
        ("127.0.0.1", "localhost:8089", "200"),
        ("127.0.0.1", "LOCALHOST.:8089", "200"),
        ("127.0.0.1", "[::1]:8089", "200"),
        ("127.0.0.1", "evil.example", "403"),
        ("127.0.0.1", "evil.example:8089", "403"),
        ("127.0.0.1", "127.0.0.1.evil.example", "403"),
        ("127.0.0.1", "localhost.evil.example", "403"),
        ("127.0.0.1", "10.0.0.5:8089", "403"),
        ("127.0.0.1", "", "403"),
        ("127.0.0.1", "[", "403"),
        ("127.0.0.1", "me@127.0.0.1", "200"),
        ("0.0.0.0", "10.0.0.5:8089", "200"),
        ("", "[fe80::1]:8089", "200"),
        ("", "evil.example", "403"),
        ("", "", "403"),
        ("gpu-box", "gpu-box:8089", "200"),
        ("gpu-box", "evil.example", "403"),
    ],
)
def test_guard_accepts_only_known_host_names(web_host: str, host: str, code: str) -> None:
    assert status(web_host, host=host) == code


def test_guard_accepts_names_given_with_web_allow_host() -> None:
    assert status("127.0.0.1", "load.example.com", host="load.example.com") == "200"
    assert status("127.0.0.1", "load.example.com", host="evil.example") == "403"
    proxied = status("127.0.0.1", "load.example.com", host="127.0.0.1:8089", origin="https://load.example.com")
    assert proxied == "200"
    for bad in ("http://load.example.com", "", "a b", "*"):
        with pytest.raises(InputError, match="is not a host name; use one such as"):
            guarded(lambda *_: [], "127.0.0.1", [bad])
    guarded(lambda *_: [], "127.0.0.1", ["load.example.com", "gpu-box"])


@pytest.mark.parametrize(
    ("code", "headers"),
    [
        ("200", {}),  # curl
        ("200", {"origin": "http://127.0.0.1:8089"}),
        ("200", {"origin": "http://127.0.0.1:8089", "sec_fetch_site": "same-origin"}),
        ("200", {"sec_fetch_site": "none"}),  # typed by the user
        ("403", {"origin": EVIL}),
        ("403", {"origin": "null"}),
        ("403", {"origin": ""}),
        ("403", {"origin": "http://["}),
        ("403", {"origin": "http://127.0.0.1:9999"}),
        ("403", {"origin": "http://localhost:8089"}),
        ("403", {"origin": "http://127.0.0.1:8089.evil.example"}),
        ("403", {"sec_fetch_site": "cross-site"}),
        ("403", {"sec_fetch_site": "same-site"}),
        ("403", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}),
        ("403", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_guard_accepts_only_requests_of_its_own_pages(code: str, headers: dict[str, str], method: str) -> None:
    assert status(host="127.0.0.1:8089", method=method, path="/swarm", **headers) == code


def test_link_on_another_site_may_only_open_the_page() -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert status(host="localhost", **link) == "200"
    assert status(host="localhost", path="/stats/requests", **link) == "403"
    assert status(host="localhost", method="POST", **link) == "403"


def test_guard_treats_default_ports_as_equal() -> None:
    assert status("", host="10.0.0.5", origin="http://10.0.0.5:80") == "200"
    assert status("", host="10.0.0.5:443", origin="https://10.0.0.5") == "200"
    assert status("", host="10.0.0.5", origin="http://10.0.0.5:8080") == "403"


def ask(page: str, method: str, path: str, body: str | bytes = "", **headers: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection(urlsplit(page).netloc, timeout=PATIENCE_S)
    sent = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in sent.items()})
    with closing(connection), connection.getresponse() as got:
        return got.status, got.read().decode(), {name.lower(): value for name, value in got.getheaders()}


def test_other_sites_cannot_start_a_test_or_get_a_key(clips: Path, tmp_path: Path) -> None:
    words = ("--api-key", "sk-own-4711", "--requests", "1")
    with canned([answer("a", length=True)]) as (other, got), ui("one process", OWN, clips, tmp_path, *words) as page:
        form = urlencode({"user_count": 1, "spawn_rate": 1, "host": other})
        assert ask(page.page, "POST", "/swarm", form, Origin=EVIL)[0] == 403
        for path in ("/", "/swarm", "/stop", "/stats/requests", "/streaming/points", "/streaming/records", "/nowhere"):
            for foreign in ({"Host": "evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Origin": EVIL}):
                assert ask(page.page, "GET", path, **foreign)[0] == 403
        code, text, sent = ask(page.page, "GET", "/")
        assert code == 200
        assert "sk-own-4711" not in text
        assert "access-control-allow-origin" not in sent
        assert sent["x-frame-options"] == "SAMEORIGIN"
        # Another host needs its own key, or the test is refused.
        said = page.post("/swarm", user_count=1, spawn_rate=1, host=other)
        assert said["message"] == (
            f"the API key is only sent to {OWN}: for {other}, enter its own key, or start this process with"
            f" --allow-host {other}"
        )
        page.start(user_count=1, host=other, api_key="sk-other-0815")
        wait_until((page.results / "summary.json").exists, "the end of the test")
        # A key given for one host is not kept for another.
        assert not page.post("/swarm", user_count=1, spawn_rate=1, host="http://127.0.0.1:9")["success"]
        text = "".join(page.text_of(path) for path in ("/", "/stats/requests", "/logs"))
        text += "".join(file.read_text() for file in page.results.iterdir())
    assert b"Bearer sk-other-0815" in got[0]
    assert b"sk-own-4711" not in got[0]
    assert "sk-o" not in text


def test_secrets_are_only_sent_to_the_host_they_were_given_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def credentials(*words: str, host: str | None = "http://a:1") -> Credentials:
        options = parse(*words)
        options.host = host
        return Credentials(options)

    assert credentials().for_host("http://b:1") == credentials().for_host("http://a:1")
    own = credentials("--api-key", "sk-1", "--header", "X: y")
    assert own.for_host("http://a:1/v1/").key == "sk-1"
    with pytest.raises(
        InputError, match="--header is only sent to http://a:1: for http://b:1, start this process with"
    ):
        own.for_host("http://b:1", "sk-2")
    assert credentials("--header", "X: y", "--allow-host", "http://b:1/").for_host("http://b:1").headers == ("X: y",)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    assert credentials().for_host("http://a:1").key == "sk-env"
    with pytest.raises(InputError, match="the API key is only sent to the --host it was given for"):
        credentials(host=None).for_host("http://a:1")
    assert credentials(host=None).for_host("http://a:1", "sk-form").key == "sk-form"
    basic = credentials(host="http://me:pw@a:1")
    assert basic.for_host("http://a:1").basic
    monkeypatch.delenv("OPENAI_API_KEY")
    assert not credentials(host="http://me:pw@a:1").for_host("http://b:1").basic


@pytest.mark.parametrize(
    ("own", "asked", "said"),
    [
        ("", "--proxy http://m:1", "was started without --proxy, but the master's test runs with --proxy http://m:1"),
        ("--proxy p:1", "", "was started with --proxy http://p:1, but the master's test runs without --proxy"),
        ("--proxy http://me:pw@p:1", "--proxy http://p:1", ""),
        ("", "--upstream m:1", "was started without --upstream, but the master's test runs with --upstream m:1"),
        (
            "--upstream a:1",
            "--upstream a:1,m:1",
            "with --upstream a:1, but the master's test runs with --upstream a:1,m:1",
        ),
        (
            "",
            "--insecure",
            "was started without --insecure, but the master's test runs with --insecure: start both with",
        ),
        ("", "--ca m.pem", "runs with --ca m.pem"),
        ("", "--cert m.pem", "runs with --cert m.pem"),
        ("--insecure --cert c.pem", "--insecure --cert c.pem", ""),
    ],
)
def test_worker_with_a_key_refuses_a_route_it_was_not_started_with(own: str, asked: str, said: str) -> None:
    def check(*words: str) -> None:
        given = parse(*words, *own.split())
        given.host = "http://a:1"
        credentials = Credentials(given)
        credentials.check_route(parse(*asked.split()), credentials.for_host("http://a:1"))

    check()  # without a key, the master chooses the route
    for secret in (("--api-key", "sk-1"), ("--header", "X: y")):
        if said:
            with pytest.raises(InputError, match=re.escape(said)):
                check(*secret)
        else:
            check(*secret)


def test_form_has_no_field_for_a_route() -> None:
    for name in ROUTE:
        with pytest.raises(InputError, match=f"the form has no field '{name}'"):
            read_form(Form({name: "x"}), parse())


def test_class_picker_edits_only_what_it_shows(clips: Path, tmp_path: Path) -> None:
    edits = {
        '{"user_class_name": "SpeechUser", "abstract": true}': "abstract",
        '{"user_class_name": "object"}': "there is no user class 'object'; user classes: SpeechUser",
        '{"user_class_name": "SpeechUser", "host": "http://evil.example"}': "a user class uses the host of the test",
        '{"user_class_name": "SpeechUser", "tasks": ["__init__"]}': "SpeechUser has no task '__init__'",
        '{"user_class_name": "SpeechUser", "weight": -1}': "weight",
        "[" * 100_000: "invalid edit of a user class",
        "\xff": "invalid edit of a user class",
    }
    with ui("one process", OWN, clips, tmp_path, "--class-picker") as page:
        for body, said in edits.items():
            code, text, _ = ask(page.page, "POST", "/user", body.encode("latin-1"))
            assert code == 400
            assert said in text
            assert text.count("\n") == 1
        assert ask(page.page, "POST", "/user", b'{"user_class_name": "SpeechUser", "fixed_count": 3}')[0] == 201
        for fields in ({"user_classes": "object"}, {"shape_class": "object"}):
            answered = page.post("/swarm", user_count=1, spawn_rate=1, host=OWN, **fields)
            assert not answered["success"]
            assert "unknown value 'object'; use one of" in answered["message"]
        assert page.get("/stats/requests")["state"] == "ready"


SCRIPT = "<script>alert(1)</script>"


def test_texts_of_servers_and_files_are_no_markup_path_or_formula(clips: Path, tmp_path: Path) -> None:
    """One case of each: cross-site scripting, paths, formulas, header injection."""
    body = f'{{"error": {{"message": "=cmd|x!A1 {SCRIPT}\\r\\nSet-Cookie: a=b"}}}}'.encode()
    refusal = b"HTTP/1.1 400 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    words = ("--requests", "2", "--html", str(tmp_path / "report.html"), "--metadata", f"note={SCRIPT}")
    with canned([refusal] * 2) as (host, _), ui("one process", host, clips, tmp_path, *words) as page:
        page.start(user_count=1, prompt=SCRIPT)
        wait_until((page.results / "summary.json").exists, "the end of the test")
        pages = [page.text_of(path) for path in ("/", "/stats/report", f"/stats/report?theme={SCRIPT}")]
        assert all(SCRIPT not in text for text in pages)
        for path in (
            "/assets/../../../../../../etc/passwd",
            "/assets/%2e%2e/%2e%2e/web.py",
            "/streaming/../../etc/passwd",
        ):
            code, text, _ = ask(page.page, "GET", path)
            assert code in (400, 404)
            assert "root:" not in text
            assert "import" not in text
        for path in ("/stats/failures/csv", "/exceptions/csv", "/streaming/csv"):
            cells = [cell for row in csv.reader(io.StringIO(page.text_of(path))) for cell in row]
            assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t")]
        _, _, headers = ask(page.page, "GET", "/stats/report?download=1")
        assert "set-cookie" not in headers
    assert "=cmd" in (page.results / "records.jsonl").read_text()

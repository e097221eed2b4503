"""An API that is added to APIS is accepted wherever an API is named, and its requests are sent and recorded."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.fleets import info
from harness.runs import Run, check_in_new_process, locust
from harness.sse import chunk, sse

ADD = '''
import pybase64

from asr_load.apis import APIS
from asr_load.apis.api import Api
from asr_load.audio.dither import dithered


class Raw(Api):
    """The bytes of a WAV file as the body."""

    name = "raw"
    path = "/v1/raw"
    summary = "posts a WAV file"
    token_limits = ()
    audio_formats = ("wav",)
    content_type = "audio/wav"

    def body(self, clip, nonce):
        return [pybase64.b64decode(b"".join(dithered(clip.audio_b64, nonce, clip.dither_at)))]


APIS[Raw.name] = Raw
'''

DERIVED = """
import pytest
from locust.argument_parser import get_parser

import asr_load.load.lifecycle
from asr_load.errors import InputError
from asr_load.load.options_page import markdown
from asr_load.settings.other_tools import ADVICE
from asr_load.settings.user_class import for_class
from harness.options import parse, settings

assert get_parser(default_config_files=[]).parse_args(["--api", "raw"]).api == "raw"
assert for_class(parse(), "User", {"api": "raw"}).api == "raw"
assert "`raw` posts a WAV file." in " ".join(markdown().split())
assert ADVICE["--backend"].endswith("raw")
assert settings("--api", "raw", host="http://h:1/v1/raw").endpoint == "/v1/raw"
assert settings("--endpoint", "/gateway/raw").request.api is Raw
for words, host, line in (
    ("--api raw --prompt x", "http://h:1", "--prompt has no effect with --api raw; remove it"),
    ("--api raw --omit model", "http://h:1", "--omit has no effect with --api raw; remove it"),
    ("--api raw --language de", "http://h:1", "--language has no effect with --api raw; remove it"),
    ("--api raw", "ws://h:1", "this test uses --api raw: add --api realtime"),
    ("--api chat", "http://h:1/v1/raw", "add --api raw, or use --host http://h:1"),
):
    with pytest.raises(InputError, match=line):
        settings(*words.split(), host=host)
with pytest.raises(InputError, match="--api raw supports only wav, but --data has opus: prepare it with"):
    settings("--api", "raw").request.in_format("opus")
"""


def test_added_api_is_accepted_wherever_an_api_is_named() -> None:
    check_in_new_process(ADD + DERIVED)


@contextmanager
def transcribing(text: str) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server that streams the same text for each POST, and knows nothing else. Yields its URL and the path, the
    content type and the body of each POST."""
    received: list[tuple[str, str, bytes]] = []
    stream = b"".join(sse(chunk(text), chunk(finish="stop")))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, self.headers["Content-Type"], body))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(stream)))
            self.end_headers()
            self.wfile.write(stream)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def test_added_api_sends_and_records_its_requests(clips: Path, tmp_path: Path) -> None:
    locustfile, results = tmp_path / "locustfile.py", tmp_path / "run"
    locustfile.write_text(f"{ADD}\nfrom asr_load import SpeechUser\n\n\nclass Own(SpeechUser):\n    pass\n")
    with transcribing("a b c") as (host, received):
        files = ("-f", locustfile, "--data", clips, "--results", results, "--json-file", results / "locust")
        results.mkdir()
        done = Run(locust("--host", host, *files, "-u", "2", "--requests", "4", "--api", "raw"), results)
    assert done.code == 0, done.out + done.err
    assert {(path, kind) for path, kind, _ in received} == {("/v1/raw", "audio/wav")}
    assert all(body.startswith(b"RIFF") for _, _, body in received)
    assert len({body for _, _, body in received}) == 5  # the trial and 4 requests, all dithered
    assert [(record["outcome"], record["text"], record["streamed"]) for record in done.records] == [
        ("ok", "a b c", True)
    ] * 4
    assert (info(done)["api"], info(done)["endpoint"], info(done)["max_tokens"]) == ("raw", "/v1/raw", None)
    assert done.rows["POST", "/v1/raw"]["num_requests"] == 4

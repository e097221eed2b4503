"""Realtime sessions end to end, from the command line to the records, against the embedded server."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import trustme

from asr_load.report.exports import export
from asr_load.results.summary import read_finished
from conftest import prepare_clips
from harness import runs
from harness.browser import browser, locust, open_tab, start_test
from harness.checks import error_of
from harness.ports import free_port
from harness.proxies import proxy
from harness.realtime import DIALECTS, FAST, refusing, saying, speak
from harness.runs import Run, run
from harness.serving import serve, wait_until


def fleet_of_two() -> tuple[str, ...]:
    """Options for two workers, on a free port."""
    port = str(free_port())
    return "--processes", "2", "--master-bind-port", port, "--master-port", port


CLOCKS_S = 0.0005
"""The maximum difference between stamps of two processes on one machine."""

each_dialect = pytest.mark.parametrize("dialect", DIALECTS)


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 0.35 s: three and a half packets of 100 ms."""
    return prepare_clips(tmp_path_factory.mktemp("spoken"), {f"clip{number}": 0.35 for number in range(4)})


@each_dialect
def test_session_in_each_dialect_ends_with_its_text(dialect: str, spoken: Path, tmp_path: Path) -> None:
    done = speak(spoken, tmp_path / "run", dialect, "-u", "2", "--requests", "4")
    assert done.code == 0, done.out + done.err
    for record in done.records:
        assert (record["outcome"], record["api"], record["dialect"]) == ("ok", "realtime", dialect)
        assert record["text"] == "the quick brown fox jumps over"
        assert record["ttft"] + sum(record["itl"]) == pytest.approx(record["e2el"], abs=1e-6)
        assert record["packets"] == 4
        assert record["setup"] > 0
        assert record["session"]
        # The last packet is due with the last sample, and the final text 40 ms after the message that ends the audio.
        assert 0.040 <= record["done_latency"] <= record["ttfs"]
        assert 0 <= record["send_lag"]["p50"] <= record["send_lag"]["p99"] <= record["send_lag"]["max"]
        # The first packet, of 0.1 s, is due 0.25 s before the speech ends, and may be sent late.
        waited = record["ttfs"] + 0.25 - record["rtf_live"] * 0.35
        assert -0.001 <= waited <= record["send_lag"]["max"] + 0.001
        assert record["events"]["session.created"] == 1
    rows = done.rows
    assert rows["WS", "/v1/realtime"]["num_requests"] == 4
    assert rows["TTFS", "/v1/realtime end of speech to final text"]["num_requests"] == 4
    summary = done.summary
    assert summary["dialects"] == {dialect: 4}
    assert summary["ttfs"]["n"] == summary["setup"]["n"] == 4


@pytest.mark.parametrize("dialect", ["vllm", "sglang", "omni"])
def test_auto_detects_the_dialect_from_the_first_event(dialect: str, clips: Path, tmp_path: Path) -> None:
    with serve(*FAST, "--realtime", dialect) as url:
        done = run(url, clips, tmp_path / "run", "--api", "realtime", "--requests", "1", "-u", "1")
    assert [record["dialect"] for record in done.records] == [dialect]
    assert done.records[0]["ok"]


@pytest.mark.long
@pytest.mark.parametrize("is_fleet", [False, True], ids=["one process", "a fleet"])
@pytest.mark.parametrize(
    "own", [(), ("--turn-detection", "server_vad", "--trailing-silence", "1")], ids=["manual", "vad"]
)
def test_auto_keeps_openai_for_the_run_if_the_trial_needed_it(
    is_fleet: bool, own: tuple[str, ...], spoken: Path, tmp_path: Path
) -> None:
    words = fleet_of_two() if is_fleet else ()
    with serve(*FAST, "--realtime", "openai", "--model", "gpt") as url:
        more = ("--api", "realtime", "--requests", "4", "-u", "2")
        done = run(url, spoken, tmp_path / "run", *more, *words, *own, preflight=True)
    assert done.code == 0, done.err
    assert [(record["dialect"], record["outcome"]) for record in done.records] == [("openai", "ok")] * 4
    assert done.err.count("trying OpenAI's") == 1
    assert json.loads((done.results / "run.json").read_text())["realtime"]["dialect"] == "auto"


def test_model_named_default_is_requested_by_name(clips: Path, tmp_path: Path) -> None:
    """OpenAI's dialect requires a model name, but "default" also stands for no model."""
    with serve(*FAST, "--realtime", "openai", "--model", "default") as url:
        more = ("--api", "realtime", "--requests", "1", "-u", "1")
        done = run(url, clips, tmp_path / "run", *more, preflight=True)
    assert done.code == 0, done.err
    assert [(record["dialect"], record["outcome"]) for record in done.records] == [("openai", "ok")]


def test_server_refusing_both_dialects_is_reported_with_or_without_a_trial(spoken: Path, tmp_path: Path) -> None:
    words = ("--api", "realtime", "--requests", "2", "-u", "1")
    # The server lists no model, but requires one.
    with serve(*FAST, "--realtime", "openai", "--model", "") as url:
        tried = run(url, spoken, tmp_path / "tried", *words, preflight=True)
        untried = run(url, spoken, tmp_path / "untried", *words)
    assert tried.code == 2
    assert "The rate must be one of (24000,), not 16000" in tried.err
    assert "transcription.model is required.). OpenAI's needs --model." in tried.err
    assert tried.err.count("running a trial session") == 2, "one line for each dialect, however often it is tried"
    for record in untried.records:
        assert record["outcome"] == "rejected"
        assert "if the server speaks OpenAI's, add --realtime-dialect openai" in record["error"]


def test_trial_session_sends_a_short_piece_of_a_long_clip(tmp_path: Path) -> None:
    clips, stamps = prepare_clips(tmp_path, {"long": 20.0}), tmp_path / "stamps.jsonl"
    with serve(*FAST, "--realtime", "vllm", "--stamps", str(stamps)) as url:
        words = ("--api", "realtime", "--requests", "1", "-u", "1", "--pace", "10")
        done = run(url, clips, tmp_path / "run", *words, preflight=True)
    assert "running a trial session with 3.0 s of speech" in done.err
    trial, test = (json.loads(line) for line in stamps.read_text().splitlines())
    assert (len(trial["received_at"]), len(test["received_at"])) == (30, 200)


@pytest.mark.long
def test_refused_session_pauses_its_user_and_is_in_the_verdict(tmp_path: Path) -> None:
    clips = prepare_clips(tmp_path, {"long": 4.0})
    done = speak(clips, tmp_path / "run", "sglang", "-u", "3", "-t", "6s", server=("--slots", "1"))
    refused = [record for record in done.records if record["outcome"] == "rejected"]
    # Each of three users pauses for 1 s after a refusal: at most seven refusals each in 6 s.
    assert 2 <= len(refused) <= 3 * 7
    (reason,) = (why for why in done.summary["validity"]["reasons"] if "refused" in why)
    assert reason.startswith(f"the server refused {len(refused)} of {len(done.records)} realtime sessions (too_many_")
    assert done.summary["validity"]["verdict"] != "valid"


def test_handshake_refused_with_retry_after_pauses_the_user(clips: Path, tmp_path: Path) -> None:
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nContent-Length: 4\r\n\r\nfull"
    with refusing(busy) as url:
        done = run(url, clips, tmp_path / "run", "--api", "realtime", "-u", "1", "--requests", "2")
    assert [(record["outcome"], record["error"]) for record in done.records] == [("ws_503", "full")] * 2
    first, second = done.records
    assert second["started_at"] - first["started_at"] >= 2


OUTCOMES = {
    "ws-403": "ws_403",
    "ws-404": "ws_404",
    "ws-close-1009": "closed_1009",
    "ws-close-1011": "closed_1011",
    "ws-cut": "closed_1006",
    "ws-error": "stream_error",
    "ws-stall": "stalled",
    "ws-no-final": "no_final",
    "ws-empty": "empty",
    "ws-bad-json": "protocol",
    "ws-binary": "protocol",
    "ws-giant": "protocol",
    "ws-late-final": "ok",
    "ws-double-final": "ok",
    "ws-late-repeat": "ok",
    "ws-spaced-final": "ok",
    "ws-empty-deltas": "ok",
    "ws-unknown-events": "ok",
    "ws-slow-reader": "ok",
    "ws-impatient": "ok",
    "ws-replaced": "ok",
}


@pytest.mark.long
@each_dialect
def test_each_realtime_fault_has_its_outcome(dialect: str, tmp_path: Path) -> None:
    outcomes = OUTCOMES | ({"ws-failed": "failed", "ws-own-commit": "ok"} if dialect in ("sglang", "openai") else {})
    clips = prepare_clips(tmp_path, dict.fromkeys(outcomes, 0.35))
    faults = [word for fault in outcomes for word in ("--fault", f"{fault}@{fault}")]
    words = ("-u", str(len(outcomes)), "--requests", str(len(outcomes)), "--stall-timeout", "4")
    done = speak(clips, tmp_path / "run", dialect, *words, server=faults)
    found = {record["clip"]: record for record in done.records}
    assert {fault: record["outcome"] for fault, record in found.items()} == outcomes
    assert "no realtime endpoint" in found["ws-403"]["error"]
    assert "as requested" in found["ws-error"]["error"]
    assert found["ws-close-1011"]["close_code"] == 1011
    assert found["ws-double-final"]["text"] == "the quick brown fox jumps over"
    assert found["ws-late-final"]["ttfs"] > 2
    spaced = found["ws-spaced-final"]
    assert (spaced["text"].split(), spaced["chunks"]) == (["the", "quick", "brown", "fox", "jumps", "over"], 6)
    assert found["ws-unknown-events"]["events"]["x.partial"] == found["ws-unknown-events"]["chunks"]
    if dialect in ("sglang", "openai"):
        assert found["ws-own-commit"]["events"]["error"] == 1
        assert found["ws-own-commit"]["text"] == "the quick brown fox jumps over"
    if dialect == "omni":
        assert found["ws-replaced"]["revised"] == found["ws-replaced"]["chunks"] - 1


@pytest.mark.long
def test_full_server_and_wrong_model_reject_the_session(clips: Path, tmp_path: Path) -> None:
    done = speak(clips, tmp_path / "full", "sglang", "-u", "3", "--requests", "9", server=("--slots", "2"))
    full = [record for record in done.records if not record["ok"]]
    assert full
    assert {record["outcome"] for record in full} == {"rejected"}
    assert all("too_many_sessions" in record["error"] for record in full)
    done = speak(clips, tmp_path / "model", "vllm", "-u", "1", "--requests", "1", "--model", "other")
    assert (done.records[0]["outcome"], done.records[0]["error"]) == (
        "rejected", "model_not_found: The model 'other' does not exist.",
    )  # fmt: skip


@pytest.mark.long
def test_wrong_dialect_gives_a_one_line_error_before_the_run(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST, "--realtime", "vllm") as url:
        words = ("--api", "realtime", "--realtime-dialect", "omni", "--requests", "1", "-u", "1")
        done = run(url, clips, tmp_path / "run", *words, preflight=True)
        assert done.code == 2
        assert "the server speaks vllm, not omni: use --realtime-dialect vllm or auto" in done.err
    with serve(*FAST) as url:
        done = run(url, clips, tmp_path / "none", "--api", "realtime", "--requests", "1", "-u", "1", preflight=True)
        assert done.code == 2
        assert "the server has no realtime endpoint, or its model does not support it" in done.err


def test_unknown_first_event_names_the_dialect_option(clips: Path, tmp_path: Path) -> None:
    with saying({"type": "hello"}) as url:
        done = run(url, clips, tmp_path / "run", "--api", "realtime", "--requests", "1", "-u", "1")
    assert done.records[0]["outcome"] == "protocol"
    assert "choose one with --realtime-dialect" in done.records[0]["error"]


@pytest.mark.long
def test_utterances_share_a_session(spoken: Path, tmp_path: Path) -> None:
    for dialect in ("vllm", "sglang"):
        done = speak(spoken, tmp_path / dialect, dialect, "-u", "1", "--requests", "4", "--utterances-per-session", "2")
        assert [record["ok"] for record in done.records] == [True] * 4
        sessions = [record["session"] for record in done.records]
        assert sessions[0] == sessions[1] != sessions[2] == sessions[3]
        assert [record["setup"] is None for record in done.records] == [False, True, False, True]


@each_dialect
def test_repeated_final_text_does_not_count_for_the_next_utterance(dialect: str, spoken: Path, tmp_path: Path) -> None:
    if dialect == "omni":
        pytest.skip("a session of omni has one transcript")
    words = ("-u", "1", "--requests", "4", "--utterances-per-session", "4")
    done = speak(spoken, tmp_path / "run", dialect, *words, server=("--fault", "ws-late-repeat"))
    assert [record["outcome"] for record in done.records] == ["ok"] * 4
    assert len({record["session"] for record in done.records}) == 1
    final = next(name for name in done.records[1]["events"] if name.endswith(("done", "completed")))
    # The final text of an utterance comes 40 ms after its audio. The repeated one comes 150 ms after the earlier audio.
    for record in done.records[1:]:
        assert record["events"][final] == 2
        assert record["ttfs"] >= 0.040
        assert record["text"] == "the quick brown fox jumps over"


@pytest.mark.long
def test_items_completed_out_of_order_are_joined_as_spoken(tmp_path: Path) -> None:
    clips = prepare_clips(tmp_path, {"long": 2.0})
    words = ("-u", "1", "--requests", "1", "--pace", "25", "--trailing-silence", "55")  # committed after 50 s
    done = speak(clips, tmp_path / "run", "sglang", *words, server=("--fault", "ws-reordered"))
    record = done.records[0]
    assert record["outcome"] == "ok", record["error"]
    said = "the quick brown fox jumps over"
    assert record["text"] == f"{said} item_001 {said} item_002"


@pytest.mark.long
def test_pace_trailing_silence_and_packet_size(spoken: Path, tmp_path: Path) -> None:
    fast = speak(spoken, tmp_path / "fast", "vllm", "-u", "1", "--requests", "1", "--pace", "0")
    assert fast.records[0]["packets"] == 4
    assert any("not realtime" in reason for reason in fast.summary["validity"]["reasons"])
    words = ("-u", "1", "--requests", "1", "--packet-ms", "20", "--trailing-silence", "0.5")
    slow = speak(spoken, tmp_path / "slow", "vllm", *words).records[0]
    assert slow["packets"] == 43  # 0.85 s
    # The clip is noise to its end. TTFS includes 0.5 s of trailing silence, and the delay of the last packet.
    assert slow["ttfs"] - slow["done_latency"] >= 0.5
    assert slow["rtf_live"] * 0.85 == pytest.approx(slow["ttfs"] + 0.33, abs=slow["send_lag"]["max"] + 0.001)
    # With --pace 0, packets are not due at any time.
    assert fast.records[0]["send_lag"]["max"] == 0


@pytest.mark.long
def test_turns_ended_by_the_server_are_recognized(spoken: Path, tmp_path: Path) -> None:
    words = ("-u", "1", "--requests", "1", "--turn-detection", "server_vad", "--trailing-silence", "0.8")
    for dialect in ("openai", "omni"):
        record = speak(spoken, tmp_path / dialect, dialect, *words).records[0]
        assert record["outcome"] == "ok", record["error"]
        assert record["events"]["input_audio_buffer.speech_stopped"] == 1


@pytest.mark.long
def test_open_loop_and_api_key_apply_to_sessions(spoken: Path, tmp_path: Path) -> None:
    with serve(*FAST, "--realtime", "vllm", "--api-key", "k-secret-1") as url:
        words = ("--api", "realtime", "-u", "20", "--request-rate", "10", "--requests", "10")
        done = run(url, spoken, tmp_path / "run", *words, "--api-key", "k-secret-1")
        assert all(record["ok"] and record["lag"] is not None for record in done.records)
        refused = run(url, spoken, tmp_path / "refused", *words[:4], "--requests", "1")
    assert refused.records[0]["outcome"] == "ws_401"
    assert "k-secret-1" not in "".join(path.read_text() for path in (tmp_path / "run").glob("*.json*"))


def test_session_cut_off_by_the_end_of_the_run_is_unfinished(tmp_path: Path) -> None:
    clips = prepare_clips(tmp_path, {"long": 20.0})
    done = speak(clips, tmp_path / "run", "vllm", "-u", "2", "-t", "2s", "--stop-timeout", "0")
    assert [record["outcome"] for record in done.records] == ["unfinished", "unfinished"]
    assert all(record["packets"] for record in done.records)


@pytest.mark.long
def test_turn_complete_at_the_end_of_the_run_is_a_success(spoken: Path, tmp_path: Path) -> None:
    words = ("-u", "2", "-t", "4s", "--stop-timeout", "0", "--trailing-silence", "60")
    done = speak(spoken, tmp_path / "run", "openai", "--turn-detection", "server_vad", *words)
    assert [record["outcome"] for record in done.records] == ["ok", "ok"]
    for record in done.records:
        assert record["text"] == "the quick brown fox jumps over"
        assert record["ttfs"] > 0.5  # the server waits for 0.5 s of silence
        assert record["done_latency"] is None  # not all silence had been sent


@pytest.mark.long
def test_long_speech_is_committed_before_the_buffer_is_full(tmp_path: Path) -> None:
    clips = prepare_clips(tmp_path, {"long": 25.0})
    # At pace 25, 25 s of audio take 1 s. The buffer's limit of 60 s applies to the audio.
    done = speak(clips, tmp_path / "run", "sglang", "-u", "1", "--requests", "1", "--pace", "25",
                 "--trailing-silence", "55")  # fmt: skip
    record = done.records[0]
    assert record["outcome"] == "ok", record["error"]
    assert record["events"]["input_audio_buffer.committed"] == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--packet-ms", "1"), "--packet-ms must be from 5"),
        (("--pace", "-1"), "--pace must be from 0"),
        (("--turn-detection", "server_vad"), "add --trailing-silence"),
        (("--realtime-dialect", "omni", "--utterances-per-session", "2"), "a session of omni has one transcript"),
        (
            ("--realtime-dialect", "vllm", "--turn-detection", "server_vad", "--trailing-silence", "1"),
            "--turn-detection server_vad does not work with vllm: remove it",
        ),
        (("--extra-body", '{"a":1}'), "--extra-body has no effect with --api realtime; remove it"),
        (("--prompt", "Listen."), "--prompt has no effect with --api realtime; remove it"),
    ],
)
def test_invalid_realtime_options_give_a_one_line_error(words: tuple[str, ...], line: str, clips: Path) -> None:
    assert line in error_of("--api", "realtime", "-u", "1", "--data", clips, *words)


@pytest.mark.long
@pytest.mark.parametrize(("dialect", "sessions"), [(name, 500 if name == "vllm" else 100) for name in DIALECTS])
def test_no_realtime_time_is_before_the_servers(dialect: str, sessions: int, tmp_path: Path) -> None:
    clips = prepare_clips(tmp_path, {f"clip{number}": 2.0 for number in range(20)})
    stamps = tmp_path / "stamps.jsonl"
    words = ("-u", str(sessions), "-r", "100", "--requests", str(max(sessions, 200)), "--stop-timeout", "20")
    done = speak(clips, tmp_path / "run", dialect, *words, server=("--stamps", str(stamps)))
    info = json.loads((done.results / "run.json").read_text())
    offset = info["workers"][0]["clock_offset_s"]
    truth = {row["request_id"].rsplit("-", 1)[1]: row for row in map(json.loads, stamps.read_text().splitlines())}
    assert len(done.records) == max(sessions, 200)
    for record in done.records:
        assert record["ok"], record["error"]
        row = truth[str(record["seq"])]
        started = record["started_at"] - offset
        # Neither side sees anything before it was sent; `make bench` measures how late. Packets are due every 0.1 s,
        # and the first may be late.
        assert started + record["ttft"] > row["sent_at"][0] - CLOCKS_S
        assert started + record["stream_end"] > row["final_at"][0] - CLOCKS_S
        due = started - record["send_lag"]["max"] + 0.1 * np.arange(len(row["received_at"]))
        assert (np.array(row["received_at"]) > due - CLOCKS_S).all()


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["vllm", "omni"])
def test_recognizer_transcribes_while_audio_is_sent(dialect: str, tmp_path: Path) -> None:
    with serve("--realtime", dialect, "--threads", "1") as url:
        words = ("--api", "realtime", "-u", "1", "--requests", "2", "--trailing-silence", "3")
        done = run(url, Path("asr_data/sample"), tmp_path / "run", *words)
    assert all(record["ok"] for record in done.records)
    # An appending dialect cannot correct earlier text.
    assert done.summary["wer"] < (0.2 if dialect == "omni" else 0.6)
    # Some text comes before the audio has ended, although not for every clip on a busy machine.
    assert any(record["ttft"] < record["audio_s"] + 3 and record["chunks"] > 1 for record in done.records)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # by `openai`
def test_openai_client_works_with_the_embedded_server() -> None:
    from openai import OpenAI  # late: short tests import this module without it

    with serve(*FAST, "--realtime", "openai") as url:
        client: Any = OpenAI(base_url=f"{url}/v1", api_key="none")
        with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            audio = {"input": {"format": {"type": "audio/pcm", "rate": 24000}, "transcription": {"model": "gpt"}}}
            connection.session.update(session={"type": "transcription", "audio": audio})
            connection.input_audio_buffer.append(audio="AAAA" * 800)
            connection.input_audio_buffer.commit()
            texts = (
                event.transcript
                for event in connection
                if event.type == "conversation.item.input_audio_transcription.completed"
            )
            assert next(texts) == "the quick brown fox jumps over"


@pytest.mark.long
def test_kept_session_ends_with_its_user(spoken: Path, tmp_path: Path) -> None:
    with serve(*FAST, "--realtime", "vllm", "--slots", "2") as url:
        words = ("--api", "realtime", "-u", "2", "--utterances-per-session", "1000")
        first = run(url, spoken, tmp_path / "first", *words, "-t", "2s")
        second = run(url, spoken, tmp_path / "second", *words, "-t", "2s")
    for done in (first, second):
        assert {record["outcome"] for record in done.records} <= {"ok", "unfinished"}
        assert len({record["session"] for record in done.records}) == 2


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_exports_have_the_columns_of_sessions(form: str, clips: Path, tmp_path: Path) -> None:
    folder = speak(clips, tmp_path / "run", "vllm", "-u", "1", "--requests", "2").results
    path = export(folder, read_finished(folder), form)
    rows = pq.read_table(path).to_pylist() if form == "parquet" else list(csv.DictReader(path.read_text().splitlines()))
    assert [row["dialect"] for row in rows] == ["vllm", "vllm"]
    assert all(json.loads(row["events"])["session.created"] == 1 for row in rows)


@pytest.mark.long
def test_search_finds_the_number_of_sessions_of_a_server(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST, "--realtime", "vllm", "--slots", "2") as url:
        words = ("-f", "locustfiles/capacity.py", "-u", "3", "--slo", "errors:rate:0.01", "--slo", "ttfs:p95:500")
        own = ("--api", "realtime", "--no-preflight", "--data", clips, "--results", tmp_path / "run")
        # Steps are repeated if another process takes the CPU.
        done = Run(runs.locust("--host", url, *own, *words, "--step-time", "10"), tmp_path / "run")
    assert "maximum effective streams: 2 (realtime sessions)" in done.out, done.out[-3000:] + done.err[-2000:]


@pytest.mark.long
def test_fleet_of_realtime_sessions_loses_nothing(spoken: Path, tmp_path: Path) -> None:
    done = speak(spoken, tmp_path / "run", "sglang", *fleet_of_two(), "-u", "8", "--requests", "40")
    assert done.code == 0, done.err
    assert sorted(record["seq"] for record in done.records) == list(range(40))
    assert {record["worker"] for record in done.records} == {0, 1}
    assert all(record["ok"] for record in done.records)
    assert done.summary["ttfs"]["n"] == 40


@pytest.mark.long
def test_sessions_over_tls(spoken: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    pem, ca = tmp_path / "server.pem", tmp_path / "ca.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    authority.cert_pem.write_to_path(str(ca))
    words = ("-u", "2", "--requests", "4", "--ca", ca)
    done = speak(spoken, tmp_path / "run", "vllm", *words, server=("--ssl-certfile", str(pem)))
    assert [record["outcome"] for record in done.records] == ["ok"] * 4, done.records[0]["error"]


def test_sessions_through_a_proxy(spoken: Path, tmp_path: Path) -> None:
    with serve(*FAST, "--realtime", "vllm") as url, proxy(url) as (way, heads):
        words = ("--api", "realtime", "-u", "1", "--requests", "2", "--proxy", way)
        done = run("http://engine:8000", spoken, tmp_path / "run", *words)
    assert [record["outcome"] for record in done.records] == ["ok", "ok"]
    assert [head.splitlines()[0] for head in heads] == ["CONNECT engine:8000 HTTP/1.1"] * 2


@pytest.mark.long
def test_web_form_starts_sessions_and_the_tab_shows_them(spoken: Path, tmp_path: Path) -> None:
    with (
        serve(*FAST, "--realtime", "vllm") as url,
        locust("--host", url, "--data", spoken, "--results", tmp_path / "run") as ui,
        browser() as chromium,
    ):
        page = chromium.new_page()
        page.goto(ui.url)
        start_test(page, 2, 2, api="realtime", requests="6")
        open_tab(page)
        page.get_by_text("TTFS p95").first.wait_for(timeout=30000)
        wait_until((tmp_path / "run" / "report.html").exists, "the end of the first test")
        page.get_by_role("button", name="New", exact=True).click()
        start_test(page, 3, 3, requests="9", pace="2")
        open_tab(page)
        wait_until(
            lambda: "of 9 successful sessions" in page.locator(".asr-tab .head").inner_text(), "the second test's end"
        )
        labels = page.locator(".asr-tab .plot").evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
        assert [label.split(",")[0].split(";")[0] for label in labels][:4] == [
            "TTFT",
            "TTFS: end of speech to final text",
            "ITL",
            "RTF live",
        ]
    for folder, count in (("run", 6), ("run-2", 9)):
        records = [json.loads(line) for line in (tmp_path / folder / "records.jsonl").read_text().splitlines()]
        assert len(records) == count
        assert all(record["ok"] and record["dialect"] == "vllm" for record in records)
        assert "TTFS: end of speech" in (tmp_path / folder / "report.html").read_text()

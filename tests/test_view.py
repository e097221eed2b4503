"""The first screen: the same words and tiles of a running test and of a finished one."""

from __future__ import annotations

import msgspec
import pytest

from asr_load.report.headline import look_of, remarks, span_of, table, tiles, words
from asr_load.report.view import View, view_finished, view_running
from asr_load.results.accuracy import Sample
from asr_load.results.live import DRAWN, REALTIME_DRAWN, Live
from asr_load.results.normalizers import Scoring
from asr_load.results.slo import Goodput, parse_slos
from asr_load.results.summary import summarise
from asr_load.results.verdict import judge_clients
from asr_load.stream.record import RealtimeRecord, Record
from harness.records import failure, health, record, run_info, worker_info

SLOS = ["ttft:p95:150", "itl:p99:200", "e2el:mean:300", "errors:rate:0.5"]
RECORDS = [*(record(n) for n in range(9)), failure(9, "http_503", ended_at=1009.5)]


@pytest.mark.parametrize(
    ("slos", "records", "said"),
    [
        ([], [record(0)], "errors 0.0%, WER 0.0%"),
        (
            ["ttft:p95:1", "e2el:p95:1000"],
            [record(0, reference=""), failure(1, "cut")],
            "SLOs 1 of 2 met, errors 50.0%",
        ),
        ([], [failure(0, "unfinished")], "no request finished"),
    ],
)
def test_status_of_the_server_in_words(slos: list[str], records: list[Record], said: str) -> None:
    assert view_finished(summarise(records, run_info(slos=slos))).server == said


def both() -> tuple[View, View]:
    """The views of a running test and of the finished one, with the same requests in ten seconds."""
    slos = parse_slos(SLOS)
    live = Live(1000.0, DRAWN, Goodput("ttft:1000"), Sample(Scoring()), slos)
    for one in RECORDS:
        live.add([one], [one.end])
        live.tick(one.started_at + 1, users=1, in_flight=0, complete_until=one.started_at + 1)
    finished = view_finished(summarise(RECORDS, run_info(slos=SLOS, goodput="ttft:1000")))
    return view_running(live, slos, judge_clients([]), finished.verdict), finished


def test_running_and_finished_test_have_the_same_tiles() -> None:
    running, finished = (tiles(view) for view in both())
    assert [tile.name.removesuffix(", whole test") for tile in running] == [tile.name for tile in finished]
    assert [tile.name for tile in finished] == [
        "TTFT p95", "E2E p95", "Requests/s", "Errors", "WER", "Goodput", "ITL p99", "E2E mean",
    ]  # fmt: skip
    assert [tile.look for tile in running] == [tile.look for tile in finished]


def test_limits_of_a_finished_test_apply_to_the_figures_shown() -> None:
    shown = {tile.name: tile for tile in tiles(both()[1])}
    assert shown["TTFT p95"][1:] == ("200.0", "ms", "limit 150 ms, missed", "bad")
    assert shown["E2E mean"][1:] == ("400 ms", "", "limit 300 ms, missed", "bad")
    assert shown["Errors"][1:] == ("10.0%", "", "limit 50.0%", "good")


def test_words_say_so_far_while_the_test_runs() -> None:
    running, finished = ({word.name: word.text for word in words(view)} for view in both())
    assert running["Server"] == "SLOs 2 of 4 met so far, errors 10.0%"
    assert finished["Server"] == "SLOs 2 of 4 met, errors 10.0%, WER 0.0%"
    assert running["Verdict"].startswith("NOT passed so far: ")
    assert finished["Verdict"].startswith("NOT passed: ")


def test_remarks_have_only_what_the_sentence_lacks() -> None:
    running, finished = both()
    (verdict,) = remarks(running)
    assert (verdict.text, verdict.look, len(verdict.reasons)) == ("NOT passed so far", "bad", 2)
    assert remarks(finished)[0].text == "NOT passed"
    late = summarise([record(0)], run_info(workers=[worker_info(health=health(loop_lag_p99=0.4))]))
    client = remarks(view_finished(late))[1]
    assert (client.name, client.look, len(client.reasons)) == ("Load generator", "bad", len(late.validity.reasons))
    assert client.reasons
    assert look_of(finished) == "bad"


def test_goodput_has_its_share_and_a_colour() -> None:
    for view in both():
        (tile,) = (tile for tile in tiles(view) if tile.name == "Goodput")
        assert (tile.unit, tile.more, tile.look) == ("requests/s", "90.0% of requests", "bad")


def test_cards_of_a_running_test_name_their_seconds() -> None:
    running, finished = both()
    spans = {tile.name: span_of(tile, running) for tile in tiles(running)}
    assert {name for name, span in spans.items() if not span} == {"WER", "E2E mean, whole test"}
    assert set(spans.values()) == {"last 10 s", ""}
    assert not any(span_of(tile, finished) for tile in tiles(finished))


def test_cards_of_a_realtime_test_are_there_before_the_first_session_ends() -> None:
    live = Live(1000.0, REALTIME_DRAWN, accuracy=Sample(Scoring()))
    running = view_running(live, [], judge_clients([]), None)
    spoken = RealtimeRecord(**msgspec.structs.asdict(record(0)), ttfs=0.4, rtf_live=1.25, dialect="vllm")
    finished = view_finished(summarise([spoken], run_info(api="realtime")))
    failed = view_finished(summarise([failure(0, "http_503")], run_info(api="realtime")), like=live)
    for view in (running, finished, failed):
        assert [tile.name for tile in tiles(view)] == ["TTFT p95", "TTFS p95", "Sessions/s", "Errors", "WER"]


def test_table_has_the_last_seconds_next_to_exact_figures() -> None:
    live = both()[0].rows
    rows = table(view_finished(summarise(RECORDS, run_info()), live).rows)["rows"]
    assert [row["metric"] for row in rows] == ["TTFT (ms)", "ITL (ms)", "TPOT (ms)", "E2E (ms)", "RTF"]
    recent, whole = rows[0]["cells"]
    assert (recent[0]["value"], recent[-1]["value"]) == ("200.0", "9")
    assert (whole[0]["value"], whole[2]["faint"], whole[-1]["value"]) == ("200.0", True, "9")

"""Compare the cost of a record in Locust's statistics and the live view with that of an event fired for each gap."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np
from locust.env import Environment

from asr_load.load import stats
from asr_load.load.publisher import CHUNKS
from asr_load.results.live import Live
from asr_load.stream.record import Record
from benchmarks import Row, ratio, seconds

RECORDS, TOKENS, ROUNDS = 500, 64, 9


def made_up(count: int, tokens: int = TOKENS) -> list[Record]:
    """Make up records of successful requests, with gaps of about 20 ms."""
    random = np.random.default_rng(0)
    records = []
    for number in range(count):
        gaps = random.gamma(16, 0.020 / 16, tokens - 1).tolist()
        ttft = float(random.gamma(16, 0.2 / 16))
        values = {"ttft": ttft, "itl": gaps, "e2el": ttft + sum(gaps), "stream_end": ttft + sum(gaps) + 0.001}
        records.append(_record(number, tokens, values))
    return records


def _record(number: int, tokens: int, values: dict[str, object]) -> Record:
    words = "the quick brown fox " * (tokens // 4)
    return Record(
        clip=f"clip{number % 100}",
        seq=number,
        user=number % 64,
        worker=0,
        warmup=False,
        started_at=1_000_000.0 + number / 50,
        due_at=None,
        lag=None,
        outcome="ok",
        ok=True,
        http_status=200,
        error=None,
        upload=0.001,
        headers=0.19,
        chunks=tokens,
        output_tokens=tokens,
        output_tokens_source="usage",
        prompt_tokens=100,
        cached_tokens=0,
        finish_reason="stop",
        streamed=True,
        audio_s=5.0,
        text=words,
        reference=words,
        **values,  # type: ignore[arg-type]
    )


def measure() -> Iterator[Row]:
    """Measure both in one process, in alternation."""
    environment = Environment()
    runner = environment.create_local_runner()
    stats.set_up(environment)
    records, live, rows = made_up(RECORDS), Live(0.0), stats.LocustRows(environment, "/v1/x")

    def ours() -> None:
        together = CHUNKS // TOKENS
        for first in range(0, RECORDS, together):
            batch = records[first : first + together]
            rows.add(batch)
            live.add(batch, [record.end for record in batch])

    def naive() -> None:
        for record in records:
            for gap in [record.ttft or 0.0, *record.itl]:
                environment.events.request.fire(
                    request_type="ITL",
                    name="naive",
                    response_time=gap * 1e3,
                    response_length=0,
                    exception=None,
                    context={},
                )

    ours()
    naive()
    times = [(seconds(ours), seconds(naive)) for _ in range(ROUNDS)]
    runner.quit()
    own, theirs = ([pair[which] for pair in times] for which in (0, 1))
    yield Row(
        f"statistics and live view of a request of {TOKENS} tokens",
        f"{statistics.median(own) / RECORDS * 1e6:.0f} µs",
        f"an event fired per gap: {statistics.median(theirs) / RECORDS * 1e6:.0f} µs",
        **ratio(own, theirs),  # type: ignore[arg-type]
        aim="",
    )

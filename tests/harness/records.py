"""Synthetic records and runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asr_load.audio.clip import part_id
from asr_load.results.record_file import RECORDS, RecordFile
from asr_load.results.runfile import ClientHealth, RunInfo, WorkerInfo, write_run
from asr_load.stream.record import Record


def record(seq: int = 0, **changes: Any) -> Record:
    """A success: TTFT 0.2 s, two gaps of 0.1 s, three tokens, two seconds of audio. If TTFT or end-to-end latency is
    changed, the other times are adapted to stay plausible."""
    values: dict[str, Any] = {
        "clip": f"clip{seq}",
        "seq": seq,
        "user": 0,
        "worker": 0,
        "warmup": False,
        "started_at": 1000.0 + seq,
        "due_at": None,
        "lag": None,
        "outcome": "ok",
        "http_status": 200,
        "error": None,
        "upload": 0.001,
        "headers": 0.199,
        "ttft": 0.2,
        "itl": [0.1, 0.1],
        "e2el": 0.4,
        "stream_end": 0.41,
        "chunks": 3,
        "output_tokens": 3,
        "output_tokens_source": "usage",
        "prompt_tokens": 9,
        "cached_tokens": 0,
        "finish_reason": "stop",
        "streamed": True,
        "audio_s": 2.0,
        "text": "he said",
        "reference": "HE SAID",
    } | changes
    ttft, e2el = values["ttft"], values["e2el"]
    if ttft is not None and e2el is not None and changes.keys() & {"ttft", "e2el"}:
        fitting = {
            "upload": min(0.001, ttft),
            "headers": min(0.199, ttft),
            "itl": [(e2el - ttft) / 2] * 2,
            "stream_end": e2el + 0.01,
        }
        values |= {name: value for name, value in fitting.items() if name not in changes}
    return Record(ok=values["outcome"] == "ok", **values)


def in_parts(*texts: str, reference: str, turn: int = 0, clip: str = "talk", **more: Any) -> list[Record]:
    """Records of the parts, 10 s each, of a recording with these transcripts."""
    return [
        record(
            len(texts) * turn + number,
            clip=part_id(clip, number, len(texts)),
            reference=reference if number == 0 else "",
            text=text,
            audio_s=10.0,
            **more,
        )
        for number, text in enumerate(texts)
    ]


def failure(seq: int, outcome: str, **changes: Any) -> Record:
    """A failure without a chunk."""
    nothing: dict[str, Any] = {
        "ttft": None,
        "itl": [],
        "e2el": None,
        "stream_end": None,
        "chunks": 0,
        "output_tokens": None,
    }
    return record(seq, **({"outcome": outcome, "error": "why", "text": "", "finish_reason": None} | nothing | changes))


def health(**changes: Any) -> ClientHealth:
    """Health of a load generator that is not busy."""
    calm: dict[str, Any] = {
        "loop_lag_p50": 0.0001,
        "loop_lag_p99": 0.001,
        "loop_lag_max": 0.004,
        "loop_lag_samples": 1000,
        "stamp_lag_p99": 0.0001,
        "stamp_lag_max": 0.001,
        "cpu_mean": 0.1,
        "cpu_max": 0.2,
        "cpu_process": 0.1,
        "watched_s": 10.0,
        "gc_pause_max": 0.001,
        "gc_pause_total": 0.002,
    }
    return ClientHealth(**(calm | changes))


def worker_info(**changes: Any) -> WorkerInfo:
    """A worker that ended ten seconds after record 0 started."""
    values: dict[str, Any] = {
        "worker": 0,
        "host": "here",
        "reader": "compiled",
        "cores": 8,
        "users": 1,
        "connections": 1,
        "connecting_s": 0.001,
        "connecting_max_s": 0.001,
        "started": 0,
        "recorded": 0,
        "ended_at": 1010.0,
        "clock_offset_s": 0.0,
        "master_offset_s": 0.0,
        "master_offset_error_s": 0.0,
        "ended": True,
        "health": health(),
    }
    return WorkerInfo(**(values | changes))


def run_info(**changes: Any) -> RunInfo:
    """A run that ended ten seconds after record 0 started."""
    values: dict[str, Any] = {
        "id": "abc",
        "version": "0",
        "began_at": 999.0,
        "ended": True,
        "host": "http://127.0.0.1:1",
        "api": "chat",
        "model": "m",
        "prompt": "p",
        "max_tokens": 128,
        "requests": 0,
        "order": "sequential",
        "seed": 0,
        "unique": "dither",
        "timeouts": {},
        "header_names": [],
        "extra_body_names": [],
        "data": "d",
        "data_sha256": "0",
        "data_clips": 3,
        "language": "en",
        "workers": [worker_info()],
        "python": "3",
        "platform": "x",
        "packages": {},
    }
    return RunInfo(**(values | changes))


def run_folder(folder: Path, records: Iterable[Record], info: RunInfo) -> Path:
    """Write a results folder; create it if necessary."""
    folder.mkdir(exist_ok=True)
    file = RecordFile(folder / RECORDS)
    for one in records:
        file.write(one)
    file.close()
    write_run(folder, info)
    return folder

"""Run one session for each flood and phase of flood_server. Prints JSON with, for each, the maximum lag of the event
loop's ticks and the maximum CPU time between two ticks, in seconds.

python -m benchmarks.flood_client URL READER CLIPS AUTHORITY
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
from pathlib import Path

import gevent
import requests

from asr_load.apis.realtime import RealtimeOptions, RealtimeRequest
from asr_load.apis.transcription_request import TranscriptionRequest
from asr_load.audio.shard import Shards
from asr_load.http import socket_reader
from asr_load.http.attempt import ExchangeConfig
from asr_load.http.connection import UserConnection
from asr_load.http.transport import Timeouts, Transport
from asr_load.realtime.pacer import Playback
from asr_load.realtime.utterance import transmit
from benchmarks.flood_server import FLOODS, PHASES

TICK_S, LIMIT_S = 0.001, 60.0


def main() -> None:
    """Run the sessions one after the other."""
    url, reader, clips, authority = sys.argv[1:]
    user_connection = UserConnection()
    user_connection.reader_factory = getattr(socket_reader, reader)
    options = RealtimeOptions("vllm", 0.1, 1.0, 0.0, server_vad=False, utterances=1, model="", language="")
    speech = RealtimeRequest(options, Shards(Path(clips))[0], b"")
    config = ExchangeConfig(Timeouts(LIMIT_S, LIMIT_S, LIMIT_S), 0, transport=Transport(authority))
    late = {}
    gc.collect()
    gc.freeze()  # as in a test
    with requests.Session() as session:
        session.trust_env = False
        for flood, phase in itertools.product(FLOODS, PHASES):
            request = TranscriptionRequest(f"{url}/{flood}/{phase}", [], {}, "a", "", 0.5, 0, 0, 0, realtime=speech)
            watch = Watch()
            record, _ = transmit(session, user_connection, request, config, Playback())
            late[f"{flood} {phase}"] = watch.stop()
            assert record.outcome == "protocol", f"{flood} {phase}: {record.outcome}, {record.error}"
    print(json.dumps(late))


class Watch:
    """Check the event loop every millisecond."""

    def __init__(self) -> None:
        self._longest = self._most = 0.0
        self._due, self._spent = time.perf_counter() + TICK_S, time.thread_time()
        self._timer = gevent.get_hub().loop.timer(TICK_S, TICK_S)
        self._timer.again(self._tick)

    def _tick(self) -> None:
        now, spent = time.perf_counter(), time.thread_time()
        self._longest, self._due = max(self._longest, now - self._due), now + TICK_S
        self._most, self._spent = max(self._most, spent - self._spent), spent

    def stop(self) -> tuple[float, float]:
        """Maximum lag of a tick, and maximum CPU time between two ticks, in seconds."""
        self._tick()
        self._timer.close()
        return self._longest, self._most


if __name__ == "__main__":
    main()

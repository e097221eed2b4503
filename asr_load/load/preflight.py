"""Check the server before a test: is it ready, which model does it have, and does it respond to one request? An error
that would fail every request is reported once, in the server's words."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import gevent
from requests import Session

from asr_load.apis.dialects import ALIKE
from asr_load.apis.realtime import RealtimeOptions
from asr_load.errors import InputError
from asr_load.http.attempt import ExchangeConfig
from asr_load.http.connection import UserConnection
from asr_load.http.server_info import ask_server, flush_cache, only_model, unlisted, unready
from asr_load.load.target import RequestSource, Target, Targets
from asr_load.options.table import DEFAULT_MODEL
from asr_load.realtime.pacer import Playback
from asr_load.realtime.speech import piece_of
from asr_load.realtime.utterance import transmit
from asr_load.results.verdict import what_failed
from asr_load.schedule.work import Job
from asr_load.settings.settings import Settings
from asr_load.stream.record import RealtimeRecord, Record
from asr_load.text import visible

WORD_EVERY_S, LOOK_EVERY_S = 10.0, 0.5
"""Seconds between messages, and between checks, while waiting for the server."""

GOES_ON = ("ok", "empty", "http_429", "ws_429")
"""Outcomes of a trial that allow a test: a clip may have no speech, and some tests are about rate limits."""

OF_THE_MODEL = ("http_400", "http_404", "http_422", "ws_403", "ws_404", "stream_error", "rejected")
"""Outcomes that a missing model may cause."""

TRIALS = 2
"""Maximum number of trials, because one failure may be chance."""

TRIAL_S = 3.0
"""Seconds of speech in a trial session, which takes as long as the speech."""

TRIAL_ALONE_S = 0.1
"""Seconds for which only the trial request runs. A server that refuses it does so within this time, and the process
ends without the imports of a test."""

HINT = "To start without a trial request, add --no-preflight"

Check = Callable[[], tuple[Settings, Targets]]


def ask_before_test(
    check: Check,
    models: dict[str, str],
    dialects: dict[str, str],
    *,
    ready_s: float,
    trial: bool,
    flush: bool,
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Check that the server can serve the test that `check` returns. Returns what the server reports about itself.

    If the options name no model, puts the server's only one into `models`, and the realtime dialect that it accepts
    into `dialects`, by host; `check` uses both. Without `trial`, sends no request and asks for nothing. Calls
    `meanwhile` while a trial request waits for a response. Raises InputError if the server cannot serve the test.
    """
    settings = check()[0]
    models.pop(settings.host, None)
    dialects.pop(settings.host, None)
    settings, targets = check()
    if ready_s:
        wait_until_ready(settings, ready_s)
    server_info: dict[str, Any] = {}
    if trial:
        server_info = ask_server(settings.host, settings.headers, settings.intake, settings.transport)
        if DEFAULT_MODEL in {target.settings.request.fields.model for target in targets.values()} and (
            model := only_model(server_info)
        ):
            models[settings.host] = model
            _print(f"using model {model}, the only one that {settings.host} lists")
            targets = check()[1]
        for line in dict.fromkeys(target.settings.request.line for target in targets.values()):
            _print(line)
        gevent.get_hub().loop.update_now()  # it did not advance while data was checked
        gevent.spawn_later(TRIAL_ALONE_S, meanwhile)
        for name, target in targets.items():
            _warn_of_long_clips(target)
            _warn_of_old_data(target)
            if dialect := _try(name, target, server_info):
                dialects[settings.host] = dialect
    if flush:
        flush_cache(settings.host, settings.headers, settings.intake, settings.transport)
    return server_info


def wait_until_ready(settings: Settings, patience_s: float) -> None:
    """Wait until the server is ready, and print messages meanwhile. Raises InputError after `patience_s` seconds."""
    began = time.monotonic()
    printed_at = began - WORD_EVERY_S
    while why := unready(settings.host, settings.headers, settings.intake, settings.transport):
        now = time.monotonic()
        if now - began >= patience_s:
            raise InputError(
                f"{settings.host} is not ready after {patience_s:g} s: {why} (to wait longer, raise --ready-timeout)"
            )
        if now - printed_at >= WORD_EVERY_S:
            printed_at = now
            _print(f"waiting for {settings.host}: {why} ({now - began:.0f} of up to {patience_s:g} s)")
        gevent.sleep(LOOK_EVERY_S)


def _warn_of_long_clips(target: Target) -> None:
    request, longest = target.settings.request, float(target.lengths.max())
    if request.longest_s is not None and longest > request.longest_s:
        _print(
            f"{request.fields.model} accepts clips of up to {request.longest_s:g} s, but the longest of --data has"
            f" {longest:.1f} s: prepare it with --max-duration {request.longest_s:g} or --chunk-long"
        )


def _warn_of_old_data(target: Target) -> None:
    if target.settings.unique != "none" and not target.shards.dithered_throughout:
        _print(
            f"--data {target.shards.folder} was prepared by an earlier version, so each clip is dithered in one place:"
            " an engine that cuts audio may use its cache for other pieces; run prepare again"
        )


def _try(name: str, target: Target, server_info: Mapping[str, Any]) -> str:
    """Send a trial request. Returns the realtime dialect that the server accepted, if its first event left that open,
    else an empty string. Raises InputError if the server cannot serve the test."""
    realtime = target.settings.realtime
    if realtime is None or realtime.dialect != "auto":
        _judge(_trial(name, target), target, server_info)
        return ""
    first = _trial(name, _guessing(target, realtime, "sglang"))
    if first.outcome != "rejected" or _dialect(first) != "sglang":
        _judge(first, target, server_info)
        return _dialect(first) if _dialect(first) in ALIKE else ""
    _print(f"the server refused SGLang's realtime dialect ({first.error}): trying OpenAI's")
    second = _trial(name, _guessing(target, realtime, "openai"))
    if second.outcome == "rejected" and second.error != first.error:
        raise InputError(
            f"the server refused a trial session in SGLang's realtime dialect ({first.error}) and in OpenAI's"
            f" ({second.error}). OpenAI's needs --model. {HINT}"
        )
    _judge(second, target, server_info)
    return "openai"


def _guessing(target: Target, realtime: RealtimeOptions, dialect: str) -> Target:
    """The target with this dialect for sessions whose first event leaves it open."""
    return replace(target, settings=replace(target.settings, realtime=replace(realtime, found=dialect)))


def _dialect(record: Record) -> str:
    return record.dialect if isinstance(record, RealtimeRecord) else ""


def _trial(name: str, target: Target) -> Record:
    """Send up to TRIALS trial requests. Returns the first record that allows the test, else the last."""
    source = RequestSource(name, target, id=f"preflight-{secrets.token_hex(4)}", worker=0, of=1, alone=True)
    for number in range(TRIALS):
        record = _send(source, target, number)
        # After a timeout, a second trial would take as long.
        if record.outcome in (*GOES_ON, "stalled", "timeout"):
            break
    return record


def _judge(record: Record, target: Target, server_info: Mapping[str, Any]) -> None:
    """Raise InputError if a trial does not allow the test. The trial, not the server's list, decides whether the server
    has the model; the list only improves the message."""
    model = target.settings.request.fields.model
    other = "" if model == DEFAULT_MODEL else unlisted(model, server_info)
    if record.outcome not in GOES_ON:
        raise InputError(_line(record, target.settings, other if record.outcome in OF_THE_MODEL else ""))
    if record.outcome == "ok" and other:
        _print(f"{other}; the trial request succeeded nevertheless")
    if record.outcome != "ok":
        _print(f"a trial request: {_what_failed(record, target.settings)}")
    elif not record.streamed:
        raise InputError(
            "the response to a trial request was not streamed, so TTFT cannot be measured: does a proxy buffer it, or"
            f" does the engine not stream responses of --api {target.settings.request.api.name}? {HINT}"
        )


def _line(record: Record, settings: Settings, other: str = "") -> str:
    more = f"; {other}" if other else ""
    line = f"a trial request failed: {_what_failed(record, settings)}{more}"
    return f"{line}{'' if line.endswith('?') else '.'} {HINT}"


def _what_failed(record: Record, settings: Settings) -> str:
    return what_failed(record.outcome, record.error or "", settings.host, record.cause)


def _send(source: RequestSource, target: Target, number: int) -> Record:
    settings = target.settings
    config = ExchangeConfig(
        settings.timeouts,
        time.time_ns() - time.perf_counter_ns(),
        settings.intake,
        transport=settings.transport,
        keep=False,
    )
    request = source.trial(
        Job(number, None), int(target.chosen[number % len(target.chosen)]), user=0, due=None, warmup=True
    )
    if (speech := request.realtime) is not None and speech.clip is not None:
        clip = piece_of(speech.clip, TRIAL_S)
        request = replace(request, realtime=speech._replace(clip=clip), audio_s=clip.duration_s)
        if number == 0:
            _print(f"running a trial session with {clip.duration_s:.1f} s of speech (--no-preflight skips it)")
    connection = UserConnection()
    with Session() as session:
        session.trust_env = False
        record, reraise = transmit(session, connection, request, config, Playback())
    connection.close()
    if reraise is not None:
        raise reraise
    return record


def _print(line: str) -> None:
    if line:
        print(visible(line), file=sys.stderr, flush=True)

"""What a server reported about itself during a test, over the window that was measured.

A counter's change is that from the last poll before the window to the first one after it. Figures that cannot be true
are left out, and a quantile of a histogram is known only as the bucket in which it lies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from asr_load.decode import Malformed, decode
from asr_load.engine.metrics_page import POLLS, Distribution, Poll
from asr_load.files import open_regular

MOST_POLLS = 1_000_000
"""Maximum number of polls that are read: eleven days of one a second."""


class Gauge(msgspec.Struct):
    """Values of a gauge at the polls within the window."""

    mean: float
    max: float


class Bucket(msgspec.Struct):
    """The bucket of a histogram in which a quantile lies, in seconds."""

    low: float
    high: float | None
    """None: above the highest bound."""


class Timing(msgspec.Struct):
    """A histogram's change over the window, in seconds."""

    n: int
    mean: float
    """The change of the sum divided by that of the count: exact."""
    p50: Bucket | None
    p95: Bucket | None
    """None if the histogram has no buckets."""


class ServerView(msgspec.Struct, kw_only=True):
    """What one metrics page reported. Names are those of engine/families.py."""

    url: str
    engine: str
    """Name of the engine; empty if the page is not that of a known one."""
    polls: int
    failed: int
    """Polls without a usable page."""
    error: str = ""
    """The last error of a poll."""
    seconds: float = 0.0
    """Length of the window of the figures below; 0 without two polls."""
    restarted: bool = False
    """Whether a counter fell, so that no change can be known."""
    requests: int | None = None
    """Requests to the path of the test that the HTTP layer counted during the whole test; None without such a
    counter."""
    sent: int
    """Requests that the test sent to that path, warm-up included."""
    gauges: dict[str, Gauge] = {}
    counters: dict[str, float] = {}
    """Change over the window."""
    timings: dict[str, Timing] = {}


def read_polls(folder: Path) -> list[Poll]:
    """The polls of a run, in order; empty without any. Skips unreadable lines, such as a last one cut short."""
    polls: list[Poll] = []
    try:
        with open_regular(folder / POLLS) as file:
            for line in file:
                if len(polls) == MOST_POLLS:
                    break
                try:
                    polls.append(decode(line, Poll))
                except Malformed:
                    continue
    except OSError:
        return []
    return sorted(polls, key=lambda poll: poll.t)


def server_views(polls: Iterable[Poll], begin: float, end: float, path: str, sent: int) -> list[ServerView]:
    """A view for each page, in the order of their first polls. `begin` and `end` of the measured window are in seconds
    since the epoch; `path` is that of the test's requests, and `sent` their number."""
    by_url: dict[str, list[Poll]] = {}
    for poll in polls:
        by_url.setdefault(poll.url, []).append(poll)
    return [_view(each, begin, end, path, sent) for each in by_url.values()]


def _view(polls: Sequence[Poll], begin: float, end: float, path: str, sent: int) -> ServerView:
    good = [poll for poll in polls if not poll.error]
    view = ServerView(
        url=polls[0].url,
        engine=next((poll.engine for poll in good if poll.engine), ""),
        polls=len(polls),
        failed=len(polls) - len(good),
        error=next((poll.error for poll in reversed(polls) if poll.error), ""),
        sent=sent,
    )
    window = _window(good, begin, end)
    if len(window) < 2:
        return view
    first, last = window[0], window[-1]
    view.seconds = last.t - first.t
    within = [poll for poll in window if begin <= poll.t <= end] or window  # before and after, the server is idle
    for name in last.gauges:
        if values := [poll.gauges[name] for poll in within if name in poll.gauges]:
            view.gauges[name] = Gauge(sum(values) / len(values), max(values))
    view.restarted = any(_fell(before, after) for before, after in pairwise(good))
    if view.restarted:
        return view
    if good[-1].requests:
        view.requests = round(good[-1].requests.get(path, 0.0) - good[0].requests.get(path, 0.0))
    # A counter with labels appears with its first event.
    view.counters = {name: value - first.counters.get(name, 0.0) for name, value in last.counters.items()}
    for name, after in last.histograms.items():
        if (timing := _timing(first.histograms.get(name, Distribution(0.0, 0.0)), after)) is not None:
            view.timings[name] = timing
    return view


def _window(good: Sequence[Poll], begin: float, end: float) -> Sequence[Poll]:
    """The polls from the last one before `begin` to the first one after `end`."""
    first = max((at for at, poll in enumerate(good) if poll.t + poll.took <= begin), default=0)
    last = next((at for at, poll in enumerate(good) if poll.t >= end), len(good) - 1)
    return good[first : last + 1]


def _fell(before: Poll, after: Poll) -> bool:
    """Whether a counter fell between two polls: the server restarted."""

    earlier, later = _counts(before), _counts(after)
    return any(count < earlier.get(name, 0.0) for name, count in later.items())


def _counts(poll: Poll) -> dict[str, float]:
    """All counts of a poll, those of histograms included."""
    return {**poll.counters, **poll.requests, **{f"n {name}": each.count for name, each in poll.histograms.items()}}


def _timing(before: Distribution, after: Distribution) -> Timing | None:
    """The change of a histogram; None without new values, or if their sum is below 0, which cannot be true."""
    n, total = round(after.count - before.count), after.sum - before.sum
    if n <= 0 or total < 0:
        return None
    known = dict(before.buckets)
    below = [(bound, count - known.get(bound, 0.0)) for bound, count in after.buckets]
    return Timing(n, total / n, _bucket(below, 0.5 * n), _bucket(below, 0.95 * n))


def _bucket(below: Sequence[tuple[float, float]], rank: float) -> Bucket | None:
    """The bucket in which the value of a rank lies. `below`: bounds, and the number of values up to each."""
    if not below:
        return None
    low = 0.0
    for bound, count in below:
        if count >= rank:
            return Bucket(low, bound)
        low = bound
    return Bucket(low, None)

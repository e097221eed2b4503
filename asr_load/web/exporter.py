"""The running test as a metrics page for Prometheus, next to the page of the server under test.

Names that begin with `locust_` are those of ContainerSolutions' locust_exporter, so dashboards made for it work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from gevent.pywsgi import WSGIServer
from locust.runners import STATE_RUNNING, STATE_SPAWNING, MasterRunner, Runner

from asr_load.errors import InputError
from asr_load.results.live import Histogram, Live
from asr_load.results.metrics import METRICS
from asr_load.results.runfile import WorkerInfo
from asr_load.results.verdict import VERDICT, Validity

if TYPE_CHECKING:
    from prometheus_client import Metric

PATH = "/metrics"

BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10,
    20, 30, 60,
)  # fmt: skip
"""Upper bounds of the histograms' buckets, in seconds, or as a ratio for RTF."""

METHODS = ("POST", "WS", "GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
"""Methods of Locust's rows that count requests; other rows have a metric's name as their method."""

MOST_ENTRIES = 100
"""Maximum number of Locust's rows on the page: a locustfile may name each request differently."""

LABELS = ("model", "api")

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Test(Protocol):
    """What the page needs to know about the running test or, without one, the last test."""

    live: Live

    @property
    def labels(self) -> tuple[str, str]:
        """The values of LABELS."""

    @property
    def workers(self) -> Sequence[WorkerInfo]: ...
    def validity(self) -> Validity: ...


def metrics_app(runner: Runner, current: Callable[[], Test | None]) -> Wsgi:
    """A WSGI application that answers every request with the metrics page. `current` returns the running or the last
    test."""
    from prometheus_client import CollectorRegistry, make_wsgi_app  # late: most tests have no metrics page

    registry = CollectorRegistry()
    registry.register(_Collector(runner, current))
    app: Wsgi = make_wsgi_app(registry)
    return app


def serve(port: int, host: str, app: Wsgi) -> None:
    """Serve a metrics page on a port; an empty host stands for all addresses of this machine. Raises InputError."""
    server = WSGIServer((host, port), app, log=None)
    try:
        server.start()
    except OSError as error:
        raise InputError(f"--metrics-port {port}: {error.strerror}") from None


class _Collector:
    def __init__(self, runner: Runner, current: Callable[[], Test | None]) -> None:
        self._runner, self._current = runner, current

    def describe(self) -> Iterable[Metric]:
        """Nothing: the library would otherwise call `collect` when the collector is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        yield from _of_locust(self._runner)
        if (test := self._current()) is not None:
            yield from _of_test(test)


def _gauge(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, text, value)


def _of_locust(runner: Runner) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    states = {STATE_SPAWNING: 1, STATE_RUNNING: 2}
    total = runner.stats.total
    yield _gauge("locust_up", "1", 1)
    yield _gauge("locust_running", "0: stopped, 1: starting users, 2: running", states.get(runner.state, 0))
    yield _gauge("locust_users", "Users", runner.user_count)
    workers = runner.worker_count if isinstance(runner, MasterRunner) else 0
    yield _gauge("locust_workers_count", "Workers that take part", workers)
    yield _gauge("locust_requests_fail_ratio", "Share of failed requests", total.fail_ratio)
    entries = [entry for entry in runner.stats.entries.values() if entry.method in METHODS][:MOST_ENTRIES]
    for value, text in (
        ("num_requests", "Requests"),
        ("num_failures", "Failed requests"),
        ("current_rps", "Requests per second, over the last ten"),
    ):
        family = GaugeMetricFamily(f"locust_requests_{value}", text, labels=("method", "name"))
        for entry in entries:
            family.add_metric((entry.method, entry.name), getattr(entry, value))
        yield family


def _of_test(test: Test) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    live, labels = test.live, test.labels
    users, in_flight = live.load
    yield _gauge("asr_load_users", "Users of the test", users)
    yield _gauge("asr_load_requests_in_flight", "Requests, or realtime utterances, without their last byte", in_flight)
    requests = CounterMetricFamily("asr_load_requests", "Ended requests", labels=(*LABELS, "outcome"))
    requests.add_metric((*labels, "ok"), live.successes)
    for outcome, count in sorted(live.failures.items()):
        requests.add_metric((*labels, outcome), count)
    yield requests
    for name, text, value in (
        ("asr_load_audio_seconds", "Seconds of audio in successful requests", live.audio_s),
        ("asr_load_output_tokens", "Output tokens of successful requests", live.tokens),
    ):
        counter = CounterMetricFamily(name, text, labels=LABELS)
        counter.add_metric(labels, value)
        yield counter
    for name, histogram in live.histograms.items():
        metric = METRICS[name]
        if not (histogram.n or metric.usual):
            continue
        family = HistogramMetricFamily(
            f"asr_load_{name}{'_seconds' if metric.in_seconds else ''}",
            f"{metric.title} of successful requests; bounds within 0.25 %",
            labels=LABELS,
        )
        family.add_metric(labels, _buckets(histogram, metric.scale), histogram.sum / metric.scale)
        yield family
    lag = GaugeMetricFamily("asr_load_loop_lag_seconds", "Lag of the event loop at p99", labels=("worker",))
    for worker in test.workers:
        if worker.health is not None:
            lag.add_metric((str(worker.worker),), worker.health.loop_lag_p99)
    yield lag
    verdict = GaugeMetricFamily("asr_load_verdict", "1 for the verdict on the figures so far", labels=("verdict",))
    shown = test.validity().verdict
    for name in VERDICT.values():
        verdict.add_metric((name,), float(name == shown))
    yield verdict


def _buckets(histogram: Histogram, scale: float) -> list[tuple[str, float]]:
    """Bounds, and the number of values up to each."""
    counts = histogram.counts_up_to([bound * scale for bound in BOUNDS])
    return [*((f"{bound:g}", float(count)) for bound, count in zip(BOUNDS, counts, strict=True)), ("+Inf", histogram.n)]

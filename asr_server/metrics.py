"""`/metrics` with SGLang's names, in seconds, updated at the end of each request."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily

from asr_server.slots import Slots

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300)
_ITL_SECONDS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 1.0, 5.0)
_BOUNDS = np.array(_ITL_SECONDS)


class _Gaps:
    """A histogram that takes many values at once. The library's needs 2 µs per value, 0.1 ms at a stream's end."""

    def __init__(self, name: str, text: str, model: str) -> None:
        self._name, self._text, self._model = name, text, model
        self._counts = np.zeros(len(_ITL_SECONDS) + 1, np.int64)
        self._sum = 0.0

    def observe(self, gaps: npt.NDArray[np.float64]) -> None:
        self._counts += np.bincount(_BOUNDS.searchsorted(gaps), minlength=len(self._counts))
        self._sum += float(gaps.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=["model_name"])
        bounds = [*map(repr, map(float, _ITL_SECONDS)), "+Inf"]
        totals = self._counts.cumsum().tolist()
        family.add_metric([self._model], buckets=list(zip(bounds, totals, strict=True)), sum_value=self._sum)
        yield family


class Metrics:
    """The metrics of one server."""

    def __init__(self, model: str, slots: Slots) -> None:
        self._registry = CollectorRegistry()

        def histogram(name: str, text: str) -> Histogram:
            family = Histogram(name, text, ["model_name"], buckets=_SECONDS, registry=self._registry)
            return family.labels(model)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model_name"], registry=self._registry).labels(model)

        self._ttft = histogram("sglang:time_to_first_token_seconds", "From arrival to the first text")
        self._e2e = histogram("sglang:e2e_request_latency_seconds", "From arrival to the end of the response")
        self._queue = histogram("sglang:queue_time_seconds", "From arrival to a slot")
        self._itl = _Gaps("sglang:inter_token_latency_seconds", "Between two chunks, each divided by its tokens", model)
        self._registry.register(self._itl)
        self._prompt = counter("sglang:prompt_tokens", "Prompt tokens")
        self._generated = counter("sglang:generation_tokens", "Tokens sent")
        labels = ["endpoint", "method"]
        self._requests = Counter("sglang:http_requests", "Requests by path", labels, registry=self._registry)
        running = Gauge("sglang:num_running_reqs", "Requests in service", ["model_name"], registry=self._registry)
        queued = Gauge("sglang:num_queue_reqs", "Requests waiting", ["model_name"], registry=self._registry)
        running.labels(model).set_function(lambda: slots.running)
        queued.labels(model).set_function(lambda: slots.queued)

    def count(self, path: str) -> None:
        """Count a request, whatever becomes of it."""
        self._requests.labels(path, "POST").inc()

    def observe(
        self, *, received: float, started: float, ended: float, sent_at: list[float], prompt_tokens: int, tokens: int
    ) -> None:
        """Count one served request. Times are on one clock, in seconds."""
        self._queue.observe(started - received)
        self._e2e.observe(ended - received)
        self._prompt.inc(prompt_tokens)
        self._generated.inc(tokens)
        if sent_at:
            self._ttft.observe(sent_at[0] - received)
        if len(sent_at) > 1:
            per_chunk = max(1.0, tokens / len(sent_at))
            self._itl.observe(np.diff(sent_at) / per_chunk)

    def text(self) -> bytes:
        """The page for Prometheus."""
        return generate_latest(self._registry)

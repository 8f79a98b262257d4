"""What Prometheus reads at GET /metrics: requests as they end, and the server's state when it is asked for.

    ajuste_requests_total{path, method, status}      paths as the interface names them, anything else is `other`
    ajuste_request_seconds{path}                     a histogram, to the last byte
    ajuste_tokens_total{kind}                        of texts: `labelled`, `scored`
    ajuste_generated_tokens_total                    of answers
    ajuste_slow_clients_total, ajuste_connections    ajuste/serving/door/connections.py
    ajuste_generating, ajuste_waiting                answers under way, answers that wait
    ajuste_queue_requests, ajuste_queue_tokens       labels and scores that are not done
    ajuste_busy_seconds                              how long the inference thread has been at its piece of work
    ajuste_models_loaded, ajuste_models_bytes, ajuste_models_refused
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")     # any other word is `other`
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

State = dict[str, float]                # name, `{label=value}` apart, -> number


class Metrics:
    """The metrics of one server. `state` gives the gauges, `counts` the counters that others keep, when asked."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, gauges: Callable[[], State], counters: Callable[[], State]) -> None:
        self._gauges, self._counters, self._registry = gauges, counters, CollectorRegistry()
        self._requests = Counter("ajuste_requests", "Requests that ended.", ["path", "method", "status"],
                                 registry=self._registry)
        self._seconds = Histogram("ajuste_request_seconds", "From a request's head to the last byte of its answer.",
                                  ["path"], buckets=SECONDS, registry=self._registry)
        self._tokens = Counter("ajuste_tokens", "Tokens of texts that were labelled or scored.", ["kind"],
                               registry=self._registry)
        self._registry.register(self)

    def ended(self, path: str, method: str, status: int, seconds: float) -> None:
        """A request is over."""
        self._requests.labels(path, method if method in METHODS else "other", str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def computed(self, kind: str, tokens: int) -> None:
        """So many tokens of texts were labelled or scored."""
        self._tokens.labels(kind).inc(tokens)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing: the state is asked for when it is collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The state now."""
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"ajuste_{name}", name.replace("_", " "), value=value)
        for name, value in self._counters().items():
            yield CounterMetricFamily(f"ajuste_{name}", name.replace("_", " "), value=value)

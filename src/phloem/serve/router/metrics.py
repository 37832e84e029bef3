"""What a router counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from phloem.parallel.replicas import Load, Prompt


class RouterMetrics:
    """Counters of a registry of its own, and each replica's load at the moment of a scrape."""

    def __init__(self, loads: Callable[[], Iterable[tuple[Load, bool]]]) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, label: str) -> Counter:
            return Counter(f"phloem:router_{name}", text, (label,), registry=self._registry)

        self._sent = counter("requests_sent", "Requests sent to a replica.", "replica")
        self._retries = counter("retries", "Of those, requests that another replica did not answer.", "replica")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens sent.", "replica")
        self._expected_hits = counter("expected_cached_tokens", "Of those, tokens expected to be cached.", "replica")
        self._handovers = counter(
            "prompts_handed_over", "Prompts to be computed there for a decode replica.", "replica"
        )
        self._outcomes = counter("requests", "Requests by how they ended.", "outcome")
        self._registry.register(_Loads(loads))

    def sent(self, replica: str, *, is_retry: bool, prompt: Prompt, num_cached: int) -> None:
        """A request goes to a replica."""
        self._sent.labels(replica).inc()
        self._prompt_tokens.labels(replica).inc(prompt.num_tokens)
        self._expected_hits.labels(replica).inc(num_cached)
        if is_retry:
            self._retries.labels(replica).inc()

    def handed_over(self, replica: str) -> None:
        """A request names this replica as the one that computes its prompt."""
        self._handovers.labels(replica).inc()

    def outcome(self, name: str) -> None:
        """A request ended: answered, cut_off, refused, no_replica or client_gone."""
        self._outcomes.labels(name).inc()

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)


class _Loads(Collector):
    def __init__(self, loads: Callable[[], Iterable[tuple[Load, bool]]]) -> None:
        self._loads = loads

    def collect(self) -> Iterator[Metric]:
        """One gauge a quantity, one sample a replica."""
        gauges = [
            GaugeMetricFamily(f"phloem:router_{name}", text, labels=["replica"])
            for name, text in (
                ("replica_available", "Whether it may be given work."),
                ("replica_requests", "Requests in flight."),
                ("replica_tokens", "Tokens in flight."),
                ("replica_cached_pages", "Pages known to be cached."),
            )
        ]
        for load, is_available in self._loads():
            values = (is_available, load.num_requests, load.num_tokens, load.view.num_pages)
            for gauge, value in zip(gauges, values, strict=True):
                gauge.add_metric([load.name], value)
        yield from gauges

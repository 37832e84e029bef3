"""Prometheus metrics, named as the field names them, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from phloem.core import wire

CONTENT_TYPE = CONTENT_TYPE_LATEST

_TTFT_S = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0)
_PER_TOKEN_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0)
_E2E_S = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 240.0, 480.0, 960.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Metrics:
    """Everything that is counted in the server process, and the engine's own counters at the moment of a scrape."""

    def __init__(self, *, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"phloem:{name}", text, ("model_name", *labels), registry=self._registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"phloem:{name}", text, ("model_name",), registry=self._registry, buckets=buckets)
            return made.labels(model_name)

        self._success = counter("request_success", "Choices that finished, by reason.", "finished_reason")
        self._failure = counter("request_failure", "Requests that ended with an error, by code.", "code")
        self._rejected = counter(
            "request_queue_rejections", "Requests refused with 503: the queue is full, or the server starts or drains."
        ).labels(model_name)
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of accepted requests.").labels(model_name)
        self._generation_tokens = counter("generation_tokens", "Tokens generated.").labels(model_name)
        self._cached_tokens = counter(
            "prompt_tokens_cached", "Prompt tokens of finished requests found cached."
        ).labels(model_name)
        self._ttft_s = histogram("time_to_first_token_seconds", "Request received to first token.", _TTFT_S)
        self._per_token_s = histogram(
            "time_per_output_token_seconds", "Mean time a token after the first.", _PER_TOKEN_S
        )
        self._e2e_s = histogram("e2e_request_latency_seconds", "Request received to last token.", _E2E_S)
        self._prompt_len = histogram("request_prompt_tokens", "Prompt tokens a request.", _TOKENS)
        self._generation_len = histogram("request_generation_tokens", "Generated tokens a request.", _TOKENS)

    def watch_engine(self, stats: Callable[[], wire.Stats | None]) -> None:
        """Read the engine's counters from `stats` at every scrape. Once."""
        self._registry.register(_EngineCollector(stats, self._model_name))

    def accepted(self, *, num_prompt_tokens: int) -> None:
        """A valid request goes to the engine."""
        self._prompt_tokens.inc(num_prompt_tokens)
        self._prompt_len.observe(num_prompt_tokens)

    def generated(self, num_tokens: int) -> None:
        """Tokens arrived."""
        self._generation_tokens.inc(num_tokens)

    def cached(self, num_tokens: int) -> None:
        """Prompt tokens that were not computed again."""
        self._cached_tokens.inc(num_tokens)

    def choice_finished(self, reason: str) -> None:
        """A choice finished."""
        self._success.labels(self._model_name, reason).inc()

    def first_token(self, seconds: float) -> None:
        """A request's first token came after `seconds`."""
        self._ttft_s.observe(seconds)

    def request_finished(self, *, seconds: float, seconds_per_token: float | None, num_generated: int) -> None:
        """A request finished as it should."""
        self._e2e_s.observe(seconds)
        self._generation_len.observe(num_generated)
        if seconds_per_token is not None:
            self._per_token_s.observe(seconds_per_token)

    def request_failed(self, code: str) -> None:
        """A request ended with an error."""
        self._failure.labels(self._model_name, code).inc()

    def rejected(self) -> None:
        """The queue was full."""
        self._rejected.inc()

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """The engine's Stats message as metrics; nothing before the first one."""

    def __init__(self, stats: Callable[[], wire.Stats | None], model_name: str) -> None:
        self._stats = stats
        self._model_name = model_name

    def describe(self) -> list[Metric]:
        """Nothing in advance: the engine may not have spoken yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One metric per field of wire.Stats."""
        if (stats := self._stats()) is None:
            return
        used = stats.pages_total - stats.pages_free - stats.pages_cached
        yield self._gauge("num_requests_running", "Sequences in execution.", stats.num_running)
        yield self._gauge("num_requests_waiting", "Requests waiting for a row.", stats.num_waiting)
        yield self._gauge("kv_cache_usage_perc", "Pages in use, 0 to 1.", used / max(1, stats.pages_total))
        yield self._gauge("kv_cache_pages", "Pages of the KV cache.", stats.pages_total)
        yield self._gauge("kv_cache_pages_cached", "Pages kept for prefixes that may return.", stats.pages_cached)
        yield self._gauge("last_step_seconds", "Duration of the last step.", stats.last_step_s)
        yield self._gauge("last_step_tokens", "Tokens computed by the last step.", stats.last_step_tokens)
        yield self._counter("num_steps", "Steps executed.", stats.num_steps)
        yield self._counter("num_preemptions", "Sequences that lost their pages and start over.", stats.num_preemptions)
        yield self._counter("prefix_cache_queries", "Prompt tokens looked up in the cache.", stats.prompt_tokens)
        yield self._counter("prefix_cache_hits", "Prompt tokens found in the cache.", stats.cached_tokens)
        yield self._counter("engine_generation_tokens", "Tokens sampled by the engine.", stats.generated_tokens)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        metric = GaugeMetricFamily(f"phloem:{name}", text, labels=["model_name"])
        metric.add_metric([self._model_name], value)
        return metric

    def _counter(self, name: str, text: str, value: float) -> Metric:
        metric = CounterMetricFamily(f"phloem:{name}", text, labels=["model_name"])
        metric.add_metric([self._model_name], value)
        return metric

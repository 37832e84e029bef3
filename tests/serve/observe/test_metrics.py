"""Metrics and access lines of whole requests."""

from __future__ import annotations

import asyncio
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from phloem.core import wire
from phloem.core.clock import ManualClock
from phloem.core.errors import InvalidRequest
from phloem.serve.observe.metrics import Metrics
from phloem.serve.observe.requests import RequestObserver

pytestmark = pytest.mark.anyio


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values but the model) -> value."""
    return {
        (sample.name, *[value for name, value in sample.labels.items() if name != "model_name"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(server) -> dict[tuple[str, ...], float]:
    answer = await server.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return samples(answer.text)


async def test_requests_are_counted_by_their_end(serve):
    """Red when a request is not counted, counted twice, or under the wrong reason."""
    server = serve(says=["Hello", "Hallo"])
    await server.complete("abc")
    await server.chat("abc", n=2, stream=True, max_tokens=3)
    await server.complete("")
    found = await scraped(server)
    assert found["phloem:request_success_total", "stop"] == 1
    assert found["phloem:request_success_total", "length"] == 2
    assert found["phloem:request_failure_total", "invalid_value"] == 1
    assert found["phloem:generation_tokens_total",] == 6 + 6
    assert found["phloem:prompt_tokens_total",] == sum(len(submit.prompt) for submit in server.submits)
    assert found["phloem:time_to_first_token_seconds_count",] == 2
    assert found["phloem:e2e_request_latency_seconds_count",] == 2


async def test_rejections_and_aborts_are_counted(serve):
    """Red when an overloaded server looks idle."""
    server = serve(step_s=0.02, max_queue=1)
    first = asyncio.create_task(server.complete(max_tokens=3))
    while not server.submits:
        await asyncio.sleep(0.001)
    await server.complete()
    await first
    found = await scraped(server)
    assert found["phloem:request_queue_rejections_total",] == 1
    assert found["phloem:request_failure_total", "overloaded"] == 1


async def test_engine_counters_appear_once_it_spoke(serve):
    """Red when a gauge reads another field of Stats, or a scrape before the first Stats fails."""
    server = serve()
    assert ("phloem:num_requests_running",) not in await scraped(server)
    stats = wire.Stats(
        time_s=1.0,
        num_running=3,
        num_waiting=4,
        pages_total=10,
        pages_free=2,
        pages_cached=3,
        num_steps=50,
        num_preemptions=6,
        prompt_tokens=700,
        cached_tokens=80,
        generated_tokens=90,
        last_step_s=0.5,
        last_step_tokens=12,
    )
    server.engine.route(stats)
    found = await scraped(server)
    expected = {
        "num_requests_running": 3,
        "num_requests_waiting": 4,
        "kv_cache_usage_perc": 0.5,
        "num_preemptions_total": 6,
        "prefix_cache_queries_total": 700,
        "prefix_cache_hits_total": 80,
    }
    assert {name: found[f"phloem:{name}",] for name in expected} == expected


def test_two_servers_in_one_process_do_not_share_counters():
    """Red when metrics go to the library's global registry."""
    first, second = Metrics(model_name="a"), Metrics(model_name="b")
    first.rejected()
    assert samples(second.exposition().decode())["phloem:request_queue_rejections_total",] == 0


def test_times_and_access_line(caplog):
    """Red when time to first token or time per token is measured between the wrong moments."""
    clock, metrics = ManualClock(), Metrics(model_name="m")
    observer = RequestObserver(request_id="r1", route="/v1/completions", metrics=metrics, clock=clock)
    observer.accepted(num_prompt_tokens=7)
    for wait_s in (0.5, 0.1, 0.1):
        clock.advance(wait_s)
        observer.generated(1)
    observer.cached(4)
    observer.choice_finished("length")
    with caplog.at_level(logging.INFO, logger="phloem.access"):
        observer.end(None)
    found = samples(metrics.exposition().decode())
    assert found["phloem:time_to_first_token_seconds_sum",] == pytest.approx(0.5)
    assert found["phloem:time_per_output_token_seconds_sum",] == pytest.approx(0.1)
    assert found["phloem:e2e_request_latency_seconds_sum",] == pytest.approx(0.7)
    assert found["phloem:prompt_tokens_cached_total",] == 4
    [line] = caplog.messages
    assert line == "r1 /v1/completions prompt=7 cached=4 generated=3 ttft=0.500s total=0.700s finish=length"


def test_access_line_of_a_failure_names_the_code(caplog):
    """Red when a refused request leaves no trace, or one with a time it never had."""
    observer = RequestObserver(request_id="r", route="/x", metrics=Metrics(model_name="m"), clock=ManualClock())
    with caplog.at_level(logging.INFO, logger="phloem.access"):
        observer.end(InvalidRequest("no"))
    assert caplog.messages == ["r /x prompt=0 cached=0 generated=0 ttft=- total=0.000s finish=invalid_value"]

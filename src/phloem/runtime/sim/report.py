"""What a simulated or measured run comes to, in numbers that people compare."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from phloem.runtime.sim.fleet import Outcome


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Of one run. Throughput counts from the first arrival to the last token; percentiles are over requests (first
    token) and over gaps between tokens of one request (inter-token)."""

    num_requests: int
    num_refused: int
    duration_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float
    hit_rate: float


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    """The numbers of a run; ValueError when every request was refused."""
    done = [outcome for outcome in outcomes if outcome.token_s]
    if not done:
        raise ValueError("no request was answered")
    ttfts = [outcome.ttft_s for outcome in done]
    gaps = np.concatenate([np.diff(outcome.token_s) for outcome in done])
    began_s = min(outcome.arrival.at_s for outcome in outcomes)
    duration_s = max(outcome.token_s[-1] for outcome in done) - began_s
    num_output = sum(len(outcome.token_s) for outcome in done)
    num_prompt = sum(outcome.arrival.num_prompt for outcome in done)
    return Summary(
        num_requests=len(outcomes),
        num_refused=len(outcomes) - len(done),
        duration_s=duration_s,
        output_tokens_per_s=num_output / duration_s,
        total_tokens_per_s=(num_output + num_prompt) / duration_s,
        ttft_p50_s=float(np.percentile(ttfts, 50)),
        ttft_p99_s=float(np.percentile(ttfts, 99)),
        itl_p50_s=float(np.percentile(gaps, 50)) if gaps.size else 0.0,
        itl_p99_s=float(np.percentile(gaps, 99)) if gaps.size else 0.0,
        hit_rate=sum(outcome.num_cached for outcome in done) / num_prompt,
    )


def lines(summary: Summary) -> list[tuple[str, str]]:
    """(name, value) for people."""
    return [
        ("requests", f"{summary.num_requests:,}, {summary.num_refused} refused, in {summary.duration_s:.1f} s"),
        ("output", f"{summary.output_tokens_per_s:,.0f} tok/s; with prompts {summary.total_tokens_per_s:,.0f} tok/s"),
        ("first token", f"p50 {1e3 * summary.ttft_p50_s:,.0f} ms, p99 {1e3 * summary.ttft_p99_s:,.0f} ms"),
        ("between tokens", f"p50 {1e3 * summary.itl_p50_s:,.1f} ms, p99 {1e3 * summary.itl_p99_s:,.1f} ms"),
        ("prefix hits", f"{100 * summary.hit_rate:.1f} % of prompt tokens"),
    ]

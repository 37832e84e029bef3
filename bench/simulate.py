"""How far `phloem simulate` is off: a real server on this machine answers a slice of a trace, and the simulator, fitted
to an earlier run on the same machine, predicts the same slice.

    python -m bench.simulate ../shared/data/azure_conv_first_half.csv.gz
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import msgspec

from phloem.parallel.replicas import Routing, make_policy
from phloem.runtime.sim.cost import fit, relative_error
from phloem.runtime.sim.fleet import Fleet, Machine, Outcome
from phloem.runtime.sim.report import Summary, lines, summarise
from phloem.runtime.sim.trace import Arrival, read_recording, read_trace

VOCABULARY = 30_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--requests", type=int, default=40, help="of each run")
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--scale-length", type=float, default=0.125)
    parser.add_argument("--model", default="default")
    options = parser.parse_args()
    read = read_trace(options.trace, limit=2 * options.requests, scale_length=options.scale_length, rate=options.rate)
    known, unknown = read[: options.requests], _from_zero(read[options.requests :])
    with tempfile.TemporaryDirectory() as folder:
        fitting = Path(folder) / "fit.phloem"
        first = measure(options.model, known, record=fitting)
        recorded = read_recording(fitting)
        cost = fit(recorded.samples)
        print(f"{len(recorded.samples)} steps, mean error of one {relative_error(cost, recorded.samples):.3f}, {cost}")
        machine = Machine(settings=recorded.settings, cost=cost)
        second = measure(options.model, unknown, record=Path(folder) / "second.phloem")
    for name, arrivals, measured in (("fitted on", known, first), ("not seen", unknown, second)):
        predicted = summarise(Fleet([machine], Routing(make_policy("round-robin"))).run(arrivals))
        compare(name, measured, predicted)


def measure(model: str, arrivals: list[Arrival], *, record: Path) -> Summary:
    """A server of its own, asked at the trace's times."""
    command = [sys.executable, "-m", "phloem", "serve", "--port", "0", "--model", model, "--record", str(record)]
    server = subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        text = ""
        while (found := re.search(r"http://\S+?:\d+", text)) is None or "curl" not in text:
            line = server.stdout.readline()
            if not line:
                raise SystemExit(f"the server did not start:\n{text}")
            text += line
        return summarise(asyncio.run(_ask_all(found.group(), arrivals)))
    finally:
        server.terminate()
        server.wait()


async def _ask_all(url: str, arrivals: list[Arrival]) -> list[Outcome]:
    limits = httpx.Limits(max_connections=len(arrivals))
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        warm = {"prompt": [1, 2, 3], "max_tokens": 2}
        (await client.post("/v1/completions", json=warm)).raise_for_status()
        began_s = time.monotonic()
        return await asyncio.gather(*(_ask(client, began_s, arrival) for arrival in arrivals))


async def _ask(client: httpx.AsyncClient, began_s: float, arrival: Arrival) -> Outcome:
    prompt = [100 + (token * 7919 + 13) % VOCABULARY for token in arrival.prompt()]
    body = {"prompt": prompt, "max_tokens": arrival.num_output, "ignore_eos": True, "temperature": 0, "stream": True}
    await asyncio.sleep(max(0.0, began_s + arrival.at_s - time.monotonic()))
    times = []
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                times.append(time.monotonic() - began_s)
    return Outcome(arrival, 0, 0, tuple(times))


def compare(name: str, measured: Summary, predicted: Summary) -> None:
    """Both, and how far they are apart."""
    print(f"{name}: measured, then predicted")
    for left, right in zip(lines(measured), lines(predicted), strict=True):
        print(f"  {left[0]:<16}{left[1]:<52}{right[1]}")
    for field in ("duration_s", "output_tokens_per_s", "ttft_p50_s", "ttft_p99_s", "itl_p50_s", "itl_p99_s"):
        was, said = getattr(measured, field), getattr(predicted, field)
        print(f"  {field:<22}{100 * (said / was - 1):+.0f} %")


def _from_zero(arrivals: list[Arrival]) -> list[Arrival]:
    """The same gaps, from time 0."""
    return [msgspec.structs.replace(each, at_s=each.at_s - arrivals[0].at_s) for each in arrivals]


if __name__ == "__main__":
    main()

"""`python -m bench handover`: what moving a prompt's pages between replicas costs, and what it spares who decodes.

bandwidth   pages of 30 layers of 32 KiB over a loopback connection, read, checked and written
TTFT        a prompt nobody has seen, one request alone: handed over, computed by one server, and by the prefill server
            itself (what the handover adds)
ITL         gaps between the tokens of one stream while other prompts arrive one after another
Both sides have two threads: one server with two, or two servers with one each.
"""

from __future__ import annotations

import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from bench import machine, rows
from bench.rows import Context, Series
from phloem.parallel.transfer.link import End, Link, Offer, Piece
from phloem.runtime.handover.pages import Arrivals, PageBytes, send_pages

OPTIONS = ("--model", "default", "--max-model-len", "2048", "--memory-gb", "0.5", "--max-step-tokens", "256")
NUM_LAYERS, PAGE_BYTES, NUM_PAGES, NUM_TIMES = 30, 32 << 10, 64, 4
LOAD_WORDS, STREAM_TOKENS = 150, 48


def main(_: Sequence[str]) -> int:
    """Measure, print, and write the rows."""
    series = [
        Series(workload="handover", metric=f"bandwidth, {name}", unit="MB/s", engine="phloem", values=values)
        for name, values in (("TCP", bandwidth(is_shared=False)), ("shared memory", bandwidth(is_shared=True)))
    ]
    with server("--threads", "2") as url:
        peers = served("aggregated", url, {})
    with server("--threads", "1", "--role", "prefill") as prefill, server("--threads", "1", "--role", "decode") as url:
        with urllib.request.urlopen(f"{prefill}/transfer") as response:
            address = json.load(response)["address"]
        peers.append(alone("not handed over", prefill, {}, first=50))
        series += served("phloem", url, {"x-phloem-kv-from": address})
    print(rows.table([*series, *peers], ours="phloem", floors={}))
    context = Context(
        machine=machine.measure(2).describe(),
        command="python -m bench handover",
        versions={},
        date=time.strftime("%Y-%m-%d"),
        commit=rows.current_commit(),
    )
    made = rows.make_rows(series, peers, floors={}, context=context)
    print(rows.write(made, [*series, *peers], workload="handover"))
    return 0


def bandwidth(*, is_shared: bool) -> tuple[float, ...]:
    """MB/s, several times."""
    source, target = (
        PageBytes([np.ones((NUM_PAGES, PAGE_BYTES), np.uint8)] * NUM_LAYERS, page_size=32, fingerprint="")
        for _ in range(2)
    )
    return tuple(_transfer(source, target, is_shared=is_shared) for _ in range(NUM_TIMES))


def _transfer(source: PageBytes, target: PageBytes, *, is_shared: bool) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = Link(socket.create_connection(listener.getsockname()))
        receiver = Link(listener.accept()[0])
    arrivals = Arrivals(target, range(NUM_PAGES), first_page=0)

    def send() -> None:
        if is_shared:
            sender.offer_slab(source.piece_bytes)
        send_pages(sender, source, range(NUM_PAGES), first_page=0)
        sender.finish()
        sender.close()

    began_s = time.monotonic()
    thread = threading.Thread(target=send)
    thread.start()
    while not isinstance(message := receiver.receive(), End):
        if isinstance(message, Offer):
            receiver.answer_offer(message)
        elif isinstance(message, Piece):
            arrivals.take(message, receiver)
    seconds = time.monotonic() - began_s
    receiver.close()
    thread.join()
    return arrivals.num_bytes / seconds / 1e6


def served(engine: str, url: str, headers: dict[str, str]) -> list[Series]:
    """TTFT alone, then the gaps of a stream beside a load of prompts."""
    ttft = alone(engine, url, headers, first=1)
    is_over, loads = threading.Event(), []

    def load() -> None:
        index = 100
        while not is_over.is_set():
            loads.append(first_token_s(url, words(index, LOAD_WORDS), headers))
            index += 1

    thread = threading.Thread(target=load)
    stream = arrivals_of(url, words(99, 20), headers, max_tokens=STREAM_TOKENS)
    times = [next(stream)]
    thread.start()
    times += stream
    is_over.set()
    thread.join()
    gaps = sorted(later - earlier for earlier, later in zip(times, times[1:], strict=False))
    named = {
        "ITL beside prompts, median": (statistics.median(gaps),),
        "ITL beside prompts, 95 %": (gaps[int(0.95 * len(gaps))],),
        "ITL beside prompts, longest": (gaps[-1],),
        "TTFT of those prompts": tuple(loads),
    }
    print(engine, {name: round(1000 * statistics.median(values), 1) for name, values in named.items()}, flush=True)
    return [ttft] + [
        Series(workload="handover", metric=name, unit="ms", engine=engine, values=tuple(1000 * s for s in values))
        for name, values in named.items()
    ]


def alone(engine: str, url: str, headers: dict[str, str], *, first: int) -> Series:
    """TTFT of prompts numbered from `first` on, one at a time."""
    list(arrivals_of(url, words(first, 20), headers, max_tokens=4))  # the first request of a server is slower
    seconds = [first_token_s(url, words(first + 1 + index, LOAD_WORDS), headers) for index in range(NUM_TIMES)]
    print(engine, "TTFT alone, s:", seconds, flush=True)
    values = tuple(1000 * each for each in seconds)
    return Series(workload="handover", metric="TTFT, alone", unit="ms", engine=engine, values=values)


def words(seed: int, count: int) -> str:
    """A prompt that begins like no other."""
    return f"{seed}: " + " ".join(f"word{(seed * 31 + index) % 97}" for index in range(count))


def first_token_s(url: str, prompt: str, headers: dict[str, str]) -> float:
    """Seconds to the first token."""
    began_s = time.monotonic()
    return next(arrivals_of(url, prompt, headers, max_tokens=1)) - began_s


def arrivals_of(url: str, prompt: str, headers: dict[str, str], *, max_tokens: int) -> Iterator[float]:
    """When each chunk of the answer came."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    data = json.dumps(body | {"logprobs": 0}).encode()  # log-probabilities: a chunk a token, whatever its text
    request = urllib.request.Request(f"{url}/v1/completions", data, {"content-type": "application/json"} | headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        for line in response:
            if line.startswith(b"data: {"):
                yield time.monotonic()


@contextmanager
def server(*options: str) -> Iterator[str]:
    """`phloem serve` until the block ends; its URL."""
    command = [sys.executable, "-m", "phloem", "serve", "--port", "0", *OPTIONS, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if match := re.search(r"serving .* on (http://\S+)", line):
                yield match[1]
                return
        raise RuntimeError(f"{' '.join(command)} did not start")
    finally:
        process.terminate()
        process.wait(20)

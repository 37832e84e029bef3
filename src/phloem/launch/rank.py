"""One rank of a replica: `python -m phloem.launch.rank`, started by launch.ranks with its order on standard input.

It builds the same worker as rank 0 at its own place of the mesh, says Joined, and applies plans until told to quit.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from phloem.core.errors import PhloemError
from phloem.launch.order import EXIT_ENGINE
from phloem.launch.ranks import RankOrder, die_with
from phloem.launch.text import tokenizer_json_of
from phloem.parallel.mailroom import BEAT_S, Arrived, Beat, FromRank, Gone, Joined, RankPost

if TYPE_CHECKING:
    import torch

CUT_GRACE_S = 1.0


def main() -> int:
    """Run one rank; the exit code is 0 after Quit, 1 otherwise."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=RankOrder)
    threading.Thread(target=die_with, args=(sys.stdin.fileno(), EXIT_ENGINE), daemon=True).start()
    mesh = order.mesh
    post = RankPost(plans=order.plans, results=order.results, rank=order.rank, num_ranks=mesh.size, on_cut=end_soon)
    voice = Voice(post, order.rank)
    try:
        _serve(order, post, voice)
    except PhloemError as error:
        voice.say(Gone(order.rank, error.code, error.message, error.field))
        if order.config.nodes > 1:  # rank 0 and who reads its words may be far away
            print(f"phloem: rank {order.rank}: {error.message}", file=sys.stderr, flush=True)
        return EXIT_ENGINE
    except BaseException as error:
        voice.say(Gone(order.rank, PhloemError.code, f"{type(error).__name__}: {error}"))
        raise
    finally:
        voice.stop()
        post.close()
    return 0


def end_soon() -> None:
    """End this process: rank 0 on another machine is gone. What it said last, such as Quit, is heard first."""
    time.sleep(CUT_GRACE_S)
    os._exit(EXIT_ENGINE)


def _serve(order: RankOrder, post: RankPost, voice: Voice) -> None:
    from phloem.parallel.comm import Comm, Company
    from phloem.runtime.exec.build import build_worker
    from phloem.runtime.exec.group import serve_rank

    config, place = order.config, order.mesh.place(order.rank)

    def meet(device: torch.device) -> Comm:
        voice.say(Arrived(order.rank))
        return Comm.meet(place, address=order.meeting, device=device)

    built = build_worker(
        model=order.source(),
        dtype=config.dtype,
        quantize=config.quantize,
        device=config.device,
        threads=config.threads,
        max_model_len=config.max_model_len,
        memory_gb=config.memory_gb,
        page_size=config.page_size,
        max_running=config.max_running,
        max_step_tokens=config.max_step_tokens,
        overlap_depth=0,
        report=lambda _name, _seconds: None,
        tokenizer_json=lambda: tokenizer_json_of(order.source()),
        company=Company(place, meet),
    )
    voice.say(Joined(order.rank, built.fingerprint))
    try:
        assert built.as_rank is not None
        serve_rank(built.as_rank, post, voice.say, place)
    finally:
        built.worker.close()


class Voice:
    """The rank's only way to speak: one at a time, and a beat from a thread of its own when it has nothing to say."""

    def __init__(self, post: RankPost, rank: int) -> None:
        self._post, self._rank = post, rank
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, name="phloem-beat", daemon=True).start()

    def say(self, message: FromRank) -> None:
        """Send one message."""
        with self._lock:
            if not self._stopped.is_set():
                self._post.send(message)

    def stop(self) -> None:
        """Say no more."""
        with self._lock:
            self._stopped.set()

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_S):
            self.say(Beat(self._rank))


if __name__ == "__main__":
    sys.exit(main())

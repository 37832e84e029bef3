"""Decider and ranks: the same words over shared memory and ZeroMQ; strangers and the silent are noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from phloem.core.errors import ConfigError, EngineDead
from phloem.core.plan import StepPlan
from phloem.core.result import StepResult
from phloem.parallel import mailroom
from phloem.parallel.mailroom import Arrived, Beat, DeciderPost, Gone, Joined, Observed, Quit, RankPost, RankStep

PLAN = StepPlan(step=3, rows=(0,), num_tokens=(1,), logits=(1,))


@pytest.fixture(params=["file", "ipc"])
def post(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[DeciderPost, RankPost, list[str]]]:
    """A decider and its one other rank."""
    lost: list[str] = []
    plans, results = f"{request.param}://{tmp_path}/plans", f"ipc://{tmp_path}/results"
    decider = DeciderPost(plans=plans, results=results, num_ranks=2, on_lost=lost.append)
    rank = RankPost(plans=plans, results=results, rank=1, num_ranks=2)
    yield decider, rank, lost
    rank.close()
    decider.close()


def test_plans_go_out_and_results_come_back(post) -> None:
    """Red if a message changes on its way, or a transport loses one."""
    decider, rank, lost = post
    rank.send(Arrived(1))
    decider.await_arrivals(timeout_s=5)
    rank.send(Joined(1, "same"))
    decider.await_ranks("same", timeout_s=5)
    step = RankStep(PLAN, ((0, (7, 8)),))
    decider.send(step, timeout_s=1)
    decider.send(Quit(), timeout_s=1)
    assert [rank.receive(timeout_s=5), rank.receive(timeout_s=5)] == [step, Quit()]
    rank.send(Observed(StepResult(step=3, rows=(0,), tokens=((9,),))))
    result = decider.next_result(timeout_s=5)
    assert result is not None
    assert result.tokens == ((9,),)
    assert not lost


def test_a_rank_with_other_weights_is_refused(post) -> None:
    """Red if ranks that compute different models may work together."""
    decider, rank, _ = post
    rank.send(Joined(1, "other"))
    with pytest.raises(ConfigError, match="rank 1 runs another version, model or set of weights"):
        decider.await_ranks("same", timeout_s=5)


def test_a_rank_that_does_not_start_is_named(post) -> None:
    """Red if the decider waits for ever."""
    decider, _, _ = post
    with pytest.raises(EngineDead, match=r"ranks \[1\] did not start"):
        decider.await_ranks("same", timeout_s=0.2)


def test_a_rank_that_ends_or_falls_silent_is_lost(post, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if only the next step would notice, or a beat does not count as a sign of life."""
    monkeypatch.setattr(mailroom, "SILENCE_S", 0.6)
    decider, rank, lost = post
    rank.send(Joined(1, "same"))
    for _ in range(4):
        time.sleep(0.3)
        rank.send(Beat(1))
    assert not lost
    waiting = threading.Thread(target=decider.next_result, kwargs={"timeout_s": 60})
    waiting.start()
    waiting.join(5)
    assert not waiting.is_alive(), "who waits for a result is woken"
    assert "rank 1 has been silent" in lost[0]
    rank.send(Gone(1, "engine_dead", "out of memory"))
    time.sleep(0.3)
    assert len(lost) == 1, "said once"

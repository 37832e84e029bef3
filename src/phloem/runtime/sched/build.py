"""A scheduler from plain values: what the recorder writes down to make the same one again."""

from __future__ import annotations

import msgspec

from phloem.memory.ledger.ledger import Ledger
from phloem.runtime.sched.intake import Intake
from phloem.runtime.sched.policy import PolicyName, make_policy
from phloem.runtime.sched.scheduler import Scheduler


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides how a scheduler behaves. Pages and tokens are counts."""

    num_pages: int
    page_size: int
    max_rows: int
    max_step_tokens: int
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()
    policy: PolicyName = "fcfs"
    seed: int = 0
    prefix_cache: bool = True
    num_micro_batches: int = 1


def make_scheduler(settings: SchedulerSettings) -> Scheduler:
    """A fresh scheduler with a ledger of its own."""
    intake = Intake(
        pool_tokens=settings.num_pages * settings.page_size,
        max_model_len=settings.max_model_len,
        eos_token_ids=settings.eos_token_ids,
        seed=settings.seed,
        prefix_cache=settings.prefix_cache,
        is_pipelined=settings.num_micro_batches > 1,
    )
    return Scheduler(
        intake=intake,
        ledger=Ledger(num_pages=settings.num_pages, page_size=settings.page_size, retain=settings.prefix_cache),
        policy=make_policy(settings.policy),
        max_rows=settings.max_rows,
        max_step_tokens=settings.max_step_tokens,
        num_micro_batches=settings.num_micro_batches,
    )

"""The pool's arithmetic, by case."""

from __future__ import annotations

import pytest

from phloem.core.errors import ConfigError
from phloem.memory.budget import DeviceBytes, PageBudget, free_host_bytes, solve_pages
from phloem.memory.spec import FullAttention

LAYERS = (FullAttention(num_kv_heads=2, head_dim=16),) * 4  # 64 numbers a token and layer
PAGE_BYTES = 4 * 64 * 2 * 32


def solve(**changes: object) -> PageBudget:
    options: dict[str, object] = {
        "layers": LAYERS,
        "page_size": 32,
        "bytes_per_element": 2,
        "model_context": 320,
        "max_model_len": None,
        "max_running": 4,
        "free_bytes": 10**9,
        "memory_gb": None,
    }
    return solve_pages(**(options | changes))  # type: ignore[arg-type]


def test_plenty_gives_every_row_its_longest_context() -> None:
    budget = solve()
    assert budget.num_pages == 4 * (320 // 32 + 1)
    assert budget.max_model_len == 320
    assert f"{PAGE_BYTES:,} B a page" in budget.arithmetic


def test_a_bound_in_gb_is_kept() -> None:
    budget = solve(memory_gb=20 * PAGE_BYTES / 1e9)
    assert budget.num_pages in (19, 20)


def test_a_small_memory_shortens_a_context_nobody_asked_for() -> None:
    budget = solve(memory_gb=5.5 * PAGE_BYTES / 1e9)
    assert budget.num_pages == 5
    assert budget.max_model_len == 4 * 32


def test_a_context_that_was_asked_for_is_not_shortened() -> None:
    with pytest.raises(ConfigError, match="lower --max-model-len or raise --memory-gb") as error:
        solve(memory_gb=5 * PAGE_BYTES / 1e9, max_model_len=320)
    assert error.value.field == "memory_gb"


def test_more_than_is_free_is_refused() -> None:
    with pytest.raises(ConfigError, match="too little memory"):
        solve(memory_gb=2, free_bytes=10**9)


def test_this_machine_has_memory() -> None:
    assert free_host_bytes() > 10**7


def test_a_devices_cache_is_what_steps_and_margin_leave() -> None:
    """Red when the memory of captured steps, which is kept apart from that of eager ones, is given to the cache."""
    measured = DeviceBytes(total=100 * 10**9, free=90 * 10**9, step=3 * 10**9)
    assert measured.for_cache == 82 * 10**9
    assert "90.00 of 100.00 GB free" in measured.arithmetic
    assert "= 82.00 GB" in measured.arithmetic

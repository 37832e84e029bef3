"""Selection: deterministic, by priority among those whose requirements hold, and explained."""

from __future__ import annotations

import itertools

import pytest

from phloem.kernels.cpu.implementations import implementations
from phloem.kernels.registry import Registry
from phloem.kernels.spec import Call, Implementation, Machine, needs_capability, needs_dtype, needs_multiple

FAST = Implementation("linear", "fast", (needs_capability("amx", "needs AMX"), needs_multiple("K", 32)), 10)
PLAIN = Implementation("linear", "plain", (needs_dtype("bfloat16", "float32"),), 0)
OTHER = Implementation("linear", "other", (), 0)


def test_highest_priority_that_can_serve_wins_in_any_order_of_registration() -> None:
    """Red if registration order, a set or a dict decides."""
    for order in itertools.permutations([FAST, PLAIN, OTHER]):
        registry = Registry(order)
        able = registry.select(Machine(frozenset({"amx"})), Call("linear", "bfloat16", sizes={"K": 64}))
        assert able.chosen == FAST
        assert able.outranked == ("other", "plain")
        unable = registry.select(Machine(), Call("linear", "bfloat16", sizes={"K": 65}))
        assert unable.chosen == OTHER
        assert unable.refused[0].reasons == ("needs AMX", "needs K to be a multiple of 32")


def test_every_refusal_is_explained() -> None:
    """Red if a candidate disappears without a reason."""
    text = Registry([FAST, PLAIN]).select(Machine(), Call("linear", "int8", storage="q4")).explain()
    assert "linear (int8, q4): no implementation" in text
    assert "not fast: needs AMX" in text
    assert "not plain: takes activations in bfloat16 or float32" in text


def test_two_implementations_of_one_name_are_refused() -> None:
    """Red if a second registration silently replaces the first."""
    with pytest.raises(ValueError, match="registered twice"):
        Registry([PLAIN, PLAIN])


def test_native_serves_what_its_kernels_can_and_says_why_not() -> None:
    """Red if a call that the tape would refuse is offered to it."""
    registry, machine = Registry(implementations()), Machine(frozenset({"native-library"}))
    sizes = {"page_size": 64, "head_dim": 80, "heads_per_kv_head": 3}
    good = Call("paged_attention", "bfloat16", sizes=sizes)
    assert registry.select(machine, good).chosen is not None
    assert registry.select(Machine(), good).chosen is None
    for name, bad in (("page_size", 48), ("head_dim", 72), ("head_dim", 512), ("heads_per_kv_head", 128)):
        refused = registry.select(machine, Call("paged_attention", "bfloat16", sizes=sizes | {name: bad}))
        assert refused.chosen is None
        assert name in refused.explain()
    assert registry.select(machine, Call("linear", "bfloat16", storage="f32")).chosen is None
    assert registry.select(machine, Call("linear", "float32", storage="f32")).chosen is not None

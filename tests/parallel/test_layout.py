"""Layouts: every unit is divided among the ranks, whole, whatever the numbers; what cannot be is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phloem.core.errors import ConfigError
from phloem.models.blocks import DECODER_LAYOUT, MOE_LAYOUT
from phloem.models.catalog import FAMILIES, define_dummy
from phloem.parallel.layout import Sizes, even, resolve_shard
from phloem.parallel.mesh import Mesh, Part

SMOLLM2 = Sizes(num_heads=9, num_kv_heads=3, head_dim=64, ffn=1536, vocab=49152)


@given(count=st.integers(1, 200), size=st.integers(1, 20))
def test_even_parts_tile_in_order_and_differ_by_at_most_one(count: int, size: int) -> None:
    """Red if a part overlaps, is left out, or is longer than it must be."""
    parts = [even(count, size, index) for index in range(size)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(kv_heads=st.integers(1, 8), group=st.integers(1, 8), size=st.integers(1, 16), blocks=st.integers(16, 64))
def test_shards_tile_and_query_heads_stay_with_their_kv_head(kv_heads: int, group: int, size: int, blocks: int) -> None:
    """Red if a rank computes a query head without its KV head, or a head is computed twice or never."""
    sizes = Sizes(kv_heads * group, kv_heads, 16, blocks * 32, blocks * 32)
    if size > kv_heads and (size % kv_heads or size // kv_heads > group):
        with pytest.raises(ConfigError, match=f"--tp {size} does not fit"):
            resolve_shard(sizes, Part("tensor", size, 0))
        return
    shards = [resolve_shard(sizes, Part("tensor", size, index)) for index in range(size)]
    for unit, total in (("heads", kv_heads * group * 16), ("ffn", sizes.ffn), ("vocab", sizes.vocab)):
        covered = [i for shard in shards for i in range(total)[shard.ranges[unit]]]  # type: ignore[index]
        assert covered == list(range(total)), unit
    for shard in shards:
        heads, kv = shard.ranges["heads"], shard.ranges["kv_heads"]
        needed = {i // 16 // group for i in range(heads.start, heads.stop)}
        assert needed == {i // 16 for i in range(kv.start, kv.stop)}
        assert (heads.stop - heads.start) % (kv.stop - kv.start) == 0


def test_nine_heads_over_three_kv_heads_on_two_ranks() -> None:
    """Red if an uneven cut is refused or divides a KV head that need not be divided."""
    first, second = (resolve_shard(SMOLLM2, Part("tensor", 2, index)) for index in (0, 1))
    assert (first.num_kv_heads, second.num_kv_heads) == (2, 1)
    assert (first.ranges["heads"], second.ranges["heads"]) == (slice(0, 384), slice(384, 576))


def test_more_ranks_than_heads_are_refused_with_the_choices() -> None:
    """Red if the message does not say what would work."""
    with pytest.raises(ConfigError, match="choose one of 1, 2, 3, 6, 9") as error:
        resolve_shard(SMOLLM2, Part("tensor", 12, 0))
    assert error.value.field == "tp"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_layout_names_parameters_that_exist(family) -> None:
    """Red if a parameter is renamed and its cut is not: it would be whole on every rank, and sums wrong."""
    dummy = family.name.replace("_", "")
    names = {name for name, _ in define_dummy(f"dummy:{dummy}-tiny").build().named_parameters()}
    patterns = {name.replace(".0.", ".{}.").replace(".1.", ".{}.") for name in names}
    optional = {name for name in family.layout if name.endswith(".bias") or name == "lm_head.weight"}
    optional |= set(DECODER_LAYOUT) if family.layout is MOE_LAYOUT else set()  # a mixture has no dense MLP
    assert set(family.layout) - patterns <= optional
    assert patterns & set(family.layout)


def test_places_and_neighbours() -> None:
    """Red if ranks of one tensor group are not adjacent, or an axis has another order than its indices."""
    mesh = Mesh(pipe=2, tensor=3)
    assert [mesh.place(rank).tensor.index for rank in range(6)] == [0, 1, 2, 0, 1, 2]
    assert mesh.place(4).neighbours("tensor") == (3, 4, 5)
    assert mesh.place(4).neighbours("pipe") == (1, 4)
    assert mesh.place(5).pipe.is_last
    assert not mesh.place(5).pipe.is_first

"""Sharding as data: which dim of which parameter is cut along the tensor axis, in units that must stay whole.

Megatron's scheme (Shoeybi et al. 2019): the linears into attention and MLP are cut by output rows, those out of them by
input columns, so that one all-reduce behind each is enough; embedding and LM head are cut by vocabulary. Query heads
stay with their KV head, and cuts may be uneven: 9 heads over 3 KV heads become 6 and 3 on two ranks. Where there are
fewer KV heads than ranks, each KV head is held by several (its query heads divided among them).

A layout is a table beside the model, {parameter pattern: Cut}; `{}` stands for the layer. What it does not name is
whole on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from phloem.core.errors import ConfigError
from phloem.parallel.mesh import Part

Unit = Literal["heads", "kv_heads", "ffn", "vocab", "expert_ffn"]
BLOCKS = (256, 32, 1)
"""Columns that are cut in multiples of a quantized block stay quantized: the largest of these that leaves enough."""


@dataclass(frozen=True)
class Cut:
    """Cut a parameter's `rows` or `columns` along the tensor axis, in parts of `unit`."""

    dim: Literal["rows", "columns"]
    unit: Unit


Layout = Mapping[str, Cut]


@dataclass(frozen=True)
class Sizes:
    """The numbers of a model that cuts go by."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    num_experts: int = 0
    expert_ffn: int = 0


@dataclass(frozen=True)
class Shard:
    """One rank's ranges of each unit, in rows or columns of a matrix, and all ranks' widths of the vocabulary.

    `experts` are those it holds whole; None: every expert is cut like an MLP.
    """

    part: Part
    ranges: Mapping[Unit, slice]
    num_kv_heads: int
    vocab_widths: tuple[int, ...]
    num_experts: int = 0
    experts: range | None = None


def resolve_shard(sizes: Sizes, part: Part, *, whole_experts: bool = False) -> Shard:
    """What `part` of the tensor axis holds. ConfigError where the model cannot be cut into that many parts."""
    if whole_experts and sizes.num_experts < part.size:
        raise ConfigError(f"--ep {part.size} is more than the model's {sizes.num_experts} experts", field="ep")
    heads, kv_heads = _heads(sizes, part)
    d = sizes.head_dim
    return Shard(
        part=part,
        ranges={
            "heads": slice(heads.start * d, heads.stop * d),
            "kv_heads": slice(kv_heads.start * d, kv_heads.stop * d),
            "ffn": _blocks(sizes.ffn, part.size, part.index),
            "vocab": _blocks(sizes.vocab, part.size, part.index),
            "expert_ffn": _blocks(sizes.expert_ffn or sizes.ffn, part.size, part.index),
        },
        num_kv_heads=len(kv_heads),
        vocab_widths=tuple(_width(_blocks(sizes.vocab, part.size, index)) for index in range(part.size)),
        num_experts=sizes.num_experts,
        experts=even(sizes.num_experts, part.size, part.index) if whole_experts else None,
    )


def even(count: int, size: int, index: int) -> range:
    """Part `index` of `count` things in `size` contiguous parts; the first parts are longer by one where they must."""
    each, rest = divmod(count, size)
    start = index * each + min(index, rest)
    return range(start, start + each + (index < rest))


def _heads(sizes: Sizes, part: Part) -> tuple[range, range]:
    """Query heads and KV heads of one part."""
    group = sizes.num_heads // sizes.num_kv_heads
    if part.size <= sizes.num_kv_heads:
        kv_heads = even(sizes.num_kv_heads, part.size, part.index)
        return range(kv_heads.start * group, kv_heads.stop * group), kv_heads
    sharers, rest = divmod(part.size, sizes.num_kv_heads)
    if rest or sharers > group:
        choices = [n for n in range(1, sizes.num_heads + 1) if _divides(sizes, n)]
        raise ConfigError(
            f"--tp {part.size} does not fit {sizes.num_heads} query heads over {sizes.num_kv_heads} KV heads; "
            f"choose one of {', '.join(map(str, choices))}",
            field="tp",
        )
    kv_head, sharer = divmod(part.index, sharers)
    mine = even(group, sharers, sharer)
    return range(kv_head * group + mine.start, kv_head * group + mine.stop), range(kv_head, kv_head + 1)


def _divides(sizes: Sizes, size: int) -> bool:
    if size <= sizes.num_kv_heads:
        return True
    sharers, rest = divmod(size, sizes.num_kv_heads)
    return rest == 0 and sharers <= sizes.num_heads // sizes.num_kv_heads


def _blocks(count: int, size: int, index: int) -> slice:
    """Part `index` of `count` rows or columns, in whole blocks."""
    block = next((block for block in BLOCKS if count % block == 0 and count // block >= size), 0)
    if not block:
        raise ConfigError(f"--tp {size} is more than the {count} rows that can be divided", field="tp")
    part = even(count // block, size, index)
    return slice(part.start * block, part.stop * block)


def _width(part: slice) -> int:
    return int(part.stop - part.start)

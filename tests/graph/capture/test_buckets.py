"""Sizes and the buckets that hold them."""

from __future__ import annotations

import pytest

from phloem.graph.capture.buckets import (
    Buckets,
    StepSizes,
    max_batch_rows,
    max_logit_lines,
    power_of_two,
    round_rows,
    round_tokens,
)

BUCKETS = Buckets(max_tokens=8192, max_context_len=4096)


def decode(num_rows: int) -> StepSizes:
    return StepSizes(num_rows, num_rows, num_rows, num_rows)


@pytest.mark.parametrize("num_rows", range(1, 257))
def test_a_decode_bucket_holds_its_rows_and_few_more(num_rows: int) -> None:
    """Red when a bucket is too small for its step, or wastes 16 rows or more than half its work."""
    bucket = BUCKETS.of(decode(num_rows))
    assert bucket.is_decode
    assert num_rows <= bucket.shape.num_rows == bucket.shape.num_tokens == bucket.num_logits
    assert bucket.shape.num_rows - num_rows <= min(15, max(1, num_rows))
    assert bucket.shape.num_decode_rows == bucket.shape.num_rows


def test_there_are_few_decode_buckets() -> None:
    """Red when capturing what 256 rows ask for takes more than 24 graphs."""
    assert len({BUCKETS.of(decode(rows)) for rows in range(1, 257)}) <= 24


@pytest.mark.parametrize(("num_decode", "num_chunks"), [(0, 1), (16, 1), (64, 9), (0, 256), (256, 3)])
def test_a_mixed_bucket_holds_its_rows(num_decode: int, num_chunks: int) -> None:
    """Red when static buffers sized by `max_batch_rows` are too short for a step of 256 rows."""
    num_rows = num_decode + num_chunks
    bucket = BUCKETS.of(StepSizes(num_rows, num_rows + 900, num_rows, num_decode))
    assert not bucket.is_decode
    assert num_rows <= bucket.shape.num_rows <= max_batch_rows(256)
    assert bucket.shape.num_tokens >= num_rows + 900
    assert bucket.shape.num_decode_rows == num_decode
    assert bucket.num_logits >= num_rows


def test_deterministic_steps_know_no_groups() -> None:
    """Red when rows that share a prefix are summed otherwise than rows that do not, though bits must be the same."""
    sizes = StepSizes(8, 8, 8, 8, num_shared=1, max_group_rows=8)
    assert BUCKETS.of(sizes).shape.num_shared == 1
    shape = Buckets(8192, 4096, deterministic=True).of(sizes).shape
    assert (shape.deterministic, shape.num_shared, shape.max_group_rows) == (True, 0, 0)


def test_limits_hold() -> None:
    """Red when a bucket has more tokens or lines than the static buffers."""
    assert Buckets(max_tokens=64, max_context_len=48).of(StepSizes(3, 33, 0, 1)).shape.num_tokens == 64
    assert BUCKETS.of(StepSizes(1, 700, 700, 0)).num_logits == round_rows(700) <= max_logit_lines(8192)
    assert BUCKETS.of(StepSizes(1, 7, 0, 0)).num_logits == 1


def test_rounding() -> None:
    assert [power_of_two(number) for number in (0, 1, 2, 3, 1024, 1025)] == [1, 1, 2, 4, 1024, 2048]
    assert [round_rows(number) for number in (0, 1, 7, 9, 17, 64, 65, 250)] == [0, 1, 8, 16, 24, 64, 80, 256]
    assert [round_tokens(number) for number in (1, 64, 65, 513, 8191)] == [64, 64, 128, 640, 8192]

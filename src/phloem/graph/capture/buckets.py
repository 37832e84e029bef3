"""Which sizes a step is run at: rounded up, so that few shapes serve all steps and each can be captured once."""

from __future__ import annotations

from dataclasses import dataclass

from phloem.kernels.triton.attention_shape import AttentionShape

ROW_STEPS = ((2, 1), (4, 2), (8, 4), (32, 8), (256, 16), (512, 32))
"""Decode rows are rounded up to a multiple of the second number, up to the first; beyond the last, of 64. A row of
padding has no keys to read, and a product of few rows takes as long as its weights; from about 190 rows on arithmetic
takes longer (792 TFLOP/s against 4.3 TB/s), so that steps stay at 16 there."""
TOKEN_STEPS = ((512, 64), (2048, 128), (1 << 30, 256))
"""The same for the tokens of a step in which some row has several."""
MIN_CHUNKS = 8


@dataclass(frozen=True, slots=True)
class StepSizes:
    """A step's own sizes; names as in AttentionShape. `num_decode_rows` are rounded already (`round_rows`) where other
    rows follow. Some row's logits are changed before it is drawn from (`adjusts`), its distribution is cut
    (`truncates`), or log-probabilities of its token are wanted (`reports`)."""

    num_rows: int
    num_tokens: int
    num_logits: int
    num_decode_rows: int
    num_shared: int = 0
    max_group_rows: int = 0
    adjusts: bool = False
    truncates: bool = False
    reports: bool = False


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sizes that steps are padded to. Two steps with equal buckets launch the same kernels with the same arguments."""

    shape: AttentionShape
    num_logits: int
    adjusts: bool = False
    truncates: bool = False
    reports: bool = False

    @property
    def is_decode(self) -> bool:
        """Whether every row computes one token."""
        return self.shape.max_query_len == 1


@dataclass(frozen=True, slots=True)
class Buckets:
    """The rule from sizes to buckets. Contexts and lengths of chunks are not told apart: kernels read them. With
    `deterministic`, groups of rows are not told to anybody: how a row sums must not depend on its neighbours."""

    max_tokens: int
    max_context_len: int
    deterministic: bool = False

    def of(self, sizes: StepSizes) -> Bucket:
        """The smallest bucket that holds a step."""
        num_chunks = sizes.num_rows - sizes.num_decode_rows
        num_logits = max(1, round_rows(sizes.num_logits))
        if num_chunks:
            num_rows = sizes.num_decode_rows + max(MIN_CHUNKS, power_of_two(num_chunks))
            num_tokens, max_query_len = min(round_tokens(sizes.num_tokens), self.max_tokens), self.max_tokens
            num_decode_rows = sizes.num_decode_rows
        else:
            num_rows = num_tokens = num_decode_rows = round_rows(sizes.num_rows)
            max_query_len = 1
        has_groups = sizes.num_shared > 0 and not self.deterministic
        num_shared = power_of_two(sizes.num_shared) if has_groups else 0
        shape = AttentionShape(
            num_rows=num_rows,
            num_tokens=num_tokens,
            num_decode_rows=num_decode_rows,
            max_query_len=max_query_len,
            max_context_len=self.max_context_len,
            num_shared=num_shared,
            max_group_rows=min(power_of_two(sizes.max_group_rows), num_rows) if num_shared else 0,
            deterministic=self.deterministic,
        )
        return Bucket(shape, num_logits, sizes.adjusts, sizes.truncates, sizes.reports)


def max_batch_rows(max_rows: int) -> int:
    """Rows of the largest bucket of a step of `max_rows` rows."""
    return round_rows(max_rows) + max(MIN_CHUNKS, power_of_two(max_rows))


def max_logit_lines(max_tokens: int) -> int:
    """Logit lines of the largest bucket of a step of `max_tokens` tokens."""
    return round_rows(max_tokens)


def round_rows(num_rows: int) -> int:
    """Decode rows, or logit lines, of the bucket that holds `num_rows`."""
    return _round(num_rows, (*ROW_STEPS, (1 << 30, 64)))


def round_tokens(num_tokens: int) -> int:
    """Tokens of the bucket that holds `num_tokens`, where some row has several."""
    return _round(num_tokens, TOKEN_STEPS)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number` (at least 1)."""
    return 1 << max(0, number - 1).bit_length()


def _round(number: int, steps: tuple[tuple[int, int], ...]) -> int:
    step = next(step for limit, step in steps if number <= limit)
    return -(-number // step) * step

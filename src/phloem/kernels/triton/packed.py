"""The packed plan: one step's decisions as one int32 array, refilled by a single copy to a fixed device address.

With R batch rows, L logit lines, G shared groups of M rows, N starting rows and A page additions (int32 throughout):

    header        [8]      R, T (tokens), L, G, M, N, A, 0
    batch_rows    [R]      device row of each batch row; a device row at most once
    query_start   [R + 1]  first token of each batch row in the step's tokens, then T
    line_tokens   [L]      the token of the step whose hidden state becomes logit line l
    line_rows     [L]      the device row that samples from line l; -1 for a line that is only read by the host
    shared_start  [G + 1]  as paged_attention takes them; shared_rows are batch rows
    shared_rows   [M]
    shared_pages  [G]
    starts        [N, 12]  see START_*: a device row begins, with everything known of it but its tokens and pages
    pages         [A, 3]   (device row, index in its block table, page); a place at most once

Sections follow each other without gaps, so a steady decode step copies about 4 R + 8 words. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]

HEADER_WORDS = 8
NUM_ROWS, NUM_TOKENS, NUM_LOGITS, NUM_SHARED, NUM_SHARED_ROWS, NUM_STARTS, NUM_PAGES = range(7)

START_WORDS = 12
START_ROW, START_KNOWN, START_COMPUTED, START_PROMPT, START_SAMPLING = range(5)
"""Where a start's row, counts of known, computed and prompt tokens, and its SAMPLING_WORDS sampling words stand."""

SAMPLING_WORDS = 8
TEMPERATURE, TOP_P, MIN_P, TOP_K, SEED_LOW, SEED_HIGH = range(6)
"""Words of one row's sampling parameters; the first three are float32 bits. The last two are zero."""

PAGE_WORDS = 3


@dataclass(frozen=True)
class PackedStep:
    """The sections of one packed plan, as the top of this file lists them."""

    batch_rows: IntArray
    query_start: IntArray
    line_tokens: IntArray
    line_rows: IntArray
    shared_start: IntArray
    shared_rows: IntArray
    shared_pages: IntArray
    starts: IntArray
    pages: IntArray


def pack(step: PackedStep, out: IntArray) -> int:
    """Write the packed plan to the head of `out` (flat int32, often pinned); returns the number of words used."""
    num_rows, num_shared = len(step.batch_rows), len(step.shared_pages)
    header = out[:HEADER_WORDS]
    header[NUM_ROWS], header[NUM_TOKENS], header[NUM_LOGITS] = num_rows, step.query_start[-1], len(step.line_tokens)
    header[NUM_SHARED], header[NUM_SHARED_ROWS] = num_shared, len(step.shared_rows)
    header[NUM_STARTS], header[NUM_PAGES], header[7] = len(step.starts), len(step.pages), 0
    end = HEADER_WORDS
    for section in (step.batch_rows, step.query_start, step.line_tokens, step.line_rows):
        end = _put(section, out, end)
    for section in (step.shared_start, step.shared_rows, step.shared_pages, step.starts, step.pages):
        end = _put(section, out, end)
    return end


def max_words(*, max_rows: int, max_logits: int, max_pages: int) -> int:
    """Room for any plan of at most these many rows, logit lines and page additions."""
    return HEADER_WORDS + 5 * max_rows + 3 + 2 * max_logits + START_WORDS * max_rows + PAGE_WORDS * max_pages


def start_words(*, row: int, num_known: int, num_computed: int, num_prompt: int, sampling: Sequence[int]) -> list[int]:
    """One line of `starts`; `sampling` from `sampling_words`."""
    return [row, num_known, num_computed, num_prompt, *sampling]


def sampling_words(*, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> list[int]:
    """A row's sampling parameters as int32 words. `seed` is taken modulo 2^64, `top_k` capped at 2^31 - 1."""
    floats = np.asarray([temperature, top_p, min_p], dtype=np.float32).view(np.int32).tolist()
    halves = np.asarray([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], dtype=np.uint32).view(np.int32).tolist()
    return [*floats, min(top_k, (1 << 31) - 1), *halves, 0, 0]


def _put(section: IntArray, out: IntArray, start: int) -> int:
    end = start + section.size
    out[start:end] = section.reshape(-1)
    return end

"""The packed plan: one step's decisions as one int32 array, refilled by a single copy to a fixed device address.

With R batch rows, L logit lines, G shared groups of M rows, N starting rows and A page additions (int32 throughout):

    header        [8]      R, T (tokens), L, G, M, N, A, 0
    batch_rows    [R]      device row of each batch row; a device row at most once
    query_start   [R + 1]  first token of each batch row in the step's tokens, then T
    line_tokens   [L]      the token of the step whose hidden state becomes logit line l
    line_rows     [L]      the device row that samples from line l; -1 for a line that is only scored, by the host
    shared_start  [G + 1]  as paged_attention takes them; shared_rows are batch rows
    shared_rows   [M]
    shared_pages  [G]
    starts        [N, 20]  see START_*: a device row begins, with everything known of it but its tokens and pages
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

SAMPLING_WORDS = 16
(
    TEMPERATURE, TOP_P, MIN_P, TOP_K, SEED_LOW, SEED_HIGH, REPETITION, PRESENCE, FREQUENCY, MIN_TOKENS, NUM_BIASES,
    NUM_ENDS, HAS_MASK, REPORTS,
) = range(14)  # fmt: skip
"""Words of one row's sampling parameters. Temperature, top_p, min_p and the penalties are float32 bits. HAS_MASK: 0 or
1. REPORTS: 0, or one more than the number of alternatives that are reported. The last two words are zero."""

START_WORDS = 4 + SAMPLING_WORDS
START_ROW, START_KNOWN, START_COMPUTED, START_PROMPT, START_SAMPLING = range(5)
"""Where a start's row, counts of known, computed and prompt tokens, and its SAMPLING_WORDS sampling words stand."""

MAX_ENDS, MAX_BIASES = 512, 1024
LISTED_ENDS, LISTED_BIASES, LISTED_VALUES = 0, MAX_ENDS, MAX_ENDS + MAX_BIASES
LISTED_WORDS = MAX_ENDS + 2 * MAX_BIASES
"""What a row lists, if anything: end tokens held back until min_tokens, biased tokens, their biases (float32 bits)."""

MAX_TOP = 32
REPORT_WORDS = 2 + 2 * MAX_TOP
REPORT_LOGPROB, REPORT_RANK, REPORT_IDS, REPORT_VALUES = 0, 1, 2, 2 + MAX_TOP
"""What is reported of one line: log-probability (float32 bits) and rank of its token; ids and log-probabilities of the
best alternatives."""

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


def sampling_words(
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    penalties: tuple[float, float, float] = (1.0, 0.0, 0.0),
    min_tokens: int = 0,
    num_biases: int = 0,
    num_ends: int = 0,
    has_mask: bool = False,
    reports: int = 0,
) -> list[int]:
    """A row's sampling parameters as int32 words. `seed` is taken modulo 2^64, `top_k` capped at 2^31 - 1; `penalties`:
    repetition, presence, frequency."""
    assert num_biases <= MAX_BIASES, "more biases than a row lists"
    assert num_ends <= MAX_ENDS, "more end tokens than a row lists"
    floats = np.asarray([temperature, top_p, min_p, *penalties], dtype=np.float32).view(np.int32).tolist()
    halves = np.asarray([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], dtype=np.uint32).view(np.int32).tolist()
    head = [*floats[:3], min(top_k, (1 << 31) - 1), *halves, *floats[3:]]
    return [*head, min_tokens, num_biases, num_ends, int(has_mask), reports, 0, 0]


def listed_words(
    end_ids: npt.NDArray[np.int64], bias_ids: npt.NDArray[np.int64], biases: npt.NDArray[np.float32]
) -> IntArray:
    """What a row lists: LISTED_WORDS words."""
    words: IntArray = np.zeros(LISTED_WORDS, dtype=np.int32)
    words[LISTED_ENDS : LISTED_ENDS + len(end_ids)] = end_ids
    words[LISTED_BIASES : LISTED_BIASES + len(bias_ids)] = bias_ids
    words[LISTED_VALUES : LISTED_VALUES + len(biases)] = biases.view(np.int32)
    return words


def _put(section: IntArray, out: IntArray, start: int) -> int:
    end = start + section.size
    out[start:end] = section.reshape(-1)
    return end

"""The host's part of constrained rows: masks, forced tokens, and what becomes of them when a row ends."""

from __future__ import annotations

import numpy as np
from tests.runtime.exec import twins

from phloem.core.plan import RowStart
from phloem.core.request import Constraint, SamplingParams
from phloem.launch.text import dummy_vocab_size, tokenizer_json_of
from phloem.runtime.exec.constrained import ConstrainedRows
from phloem.runtime.grammar.grammars import Grammars, no_vocabulary
from phloem.runtime.grammar.vocabulary import Vocabulary

VOCAB_SIZE = dummy_vocab_size(twins.MODEL)


def rows_of(grammars: Grammars | None = None) -> ConstrainedRows:
    made = Grammars(lambda: Vocabulary(tokenizer_json_of(twins.MODEL), VOCAB_SIZE, (2,)))
    return ConstrainedRows(vocab_size=VOCAB_SIZE, grammars=grammars or made)


def start(row: int, expression: str) -> RowStart:
    sampling = SamplingParams(max_tokens=30, constraint=Constraint("regex", expression))
    return RowStart(row, row, (5, 6), 2, 0, (0,), sampling, 0)


def allowed(rows: ConstrainedRows, row: int) -> list[int]:
    mask = rows.masks([row])[row]
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def test_a_drawn_token_brings_those_that_must_follow_and_the_next_mask() -> None:
    """Red when forced tokens are reported but never uploaded, uploaded twice, or the next mask does not know them."""
    rows = rows_of()
    rows.start(start(3, "ab(cdef[gh]|x)"))
    (first,) = allowed(rows, 3)
    taken = rows.took(3, first)
    assert taken[0] == first
    assert len(taken) > 1, "b can only follow"
    assert rows.take_forced() == {3: taken[1:]}
    assert rows.take_forced() == {}
    assert len(allowed(rows, 3)) == 2
    rows.close()


def test_an_ended_row_leaves_nothing_behind() -> None:
    """Red when a row's forced tokens are written into the row that follows it."""
    rows = rows_of()
    rows.start(start(3, "abc"))
    rows.took(3, allowed(rows, 3)[0])
    rows.end(3)
    rows.end(4)  # never one of these
    assert 3 not in rows
    assert (rows.take_forced(), rows.masks([3])) == ({}, {})
    rows.close()


def test_a_constraint_that_cannot_be_compiled_says_so() -> None:
    """Red when such a row allows anything, or its failure has no reason."""
    rows = rows_of(Grammars(no_vocabulary))
    rows.start(start(1, "a"))
    assert allowed(rows, 1) == []
    assert "cannot be followed any further: this model cannot follow constraints" in (rows.fault(1) or "")
    assert rows.fault(2) is None
    rows.close()

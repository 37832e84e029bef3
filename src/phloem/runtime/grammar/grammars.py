"""The compiled grammars of one engine: made off the step's thread, shared by requests, bounded by bytes.

What is compiled has computed its first mask, and copies know what it knows: for a large schema that mask takes as long
as ten steps, and every request would compute it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint
from phloem.runtime.grammar.matcher import Beginning, Matcher

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from phloem.runtime.grammar.compile import Compiler
    from phloem.runtime.grammar.vocabulary import Vocabulary

CACHE_BYTES = 256 << 20
BYTES_PER_GRAMMAR, BYTES_PER_CHAR = 128 << 10, 128
"""What a compiled grammar takes, at most in nine of ten of MaskBench's schemas: so much and so much a character."""


class Grammars:
    """A cache of compiled grammars, least recently used out first. Threads may share it; one compiles at a time.

    `vocabulary` is called when the first constraint comes: an engine that never sees one never reads a tokenizer.
    """

    def __init__(self, vocabulary: Callable[[], Vocabulary], *, max_bytes: int = CACHE_BYTES) -> None:
        self._load = vocabulary
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._compiler: Compiler | None = None
        self._compiling = threading.Lock()
        self._changing = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """What the cache is estimated to hold."""
        return self._num_bytes

    def has(self, constraint: Constraint) -> bool:
        """Whether it is compiled already."""
        return constraint in self._compiled

    def compile(self, constraint: Constraint) -> None:
        """Compile it unless it is. InvalidRequest when it cannot be."""
        self._get(constraint)

    def matcher(self, constraint: Constraint, generated: Sequence[int] = ()) -> Matcher:
        """A matcher after `generated` tokens. Costs nothing here: its first mask copies the grammar, and compiles it
        again if it was evicted meanwhile. Where that cannot be done, its `fault` says so."""
        return Matcher(lambda: self._begin(constraint), generated=generated)

    def _begin(self, constraint: Constraint) -> Beginning:
        grammar = self._get(constraint).deep_copy()
        compiler = self._compiler
        assert compiler is not None
        return Beginning(grammar, end_ids=compiler.end_ids, mask_size=compiler.mask_size)

    def _get(self, constraint: Constraint) -> LLMatcher:
        with self._changing:
            if constraint in self._compiled:
                self._compiled.move_to_end(constraint)
                return self._compiled[constraint]
        with self._compiling:
            compiled = self._made_compiler().compile(constraint)
            compiled.compute_bitmask()
        with self._changing:
            self._keep(constraint, compiled)
        return compiled

    def _keep(self, constraint: Constraint, compiled: LLMatcher) -> None:
        if constraint not in self._compiled:
            self._num_bytes += _num_bytes(constraint)
        self._compiled[constraint] = compiled
        while self._num_bytes > self._max_bytes and len(self._compiled) > 1:
            oldest, _ = self._compiled.popitem(last=False)
            self._num_bytes -= _num_bytes(oldest)

    def _made_compiler(self) -> Compiler:
        if self._compiler is None:
            from phloem.runtime.grammar.compile import Compiler

            try:
                self._compiler = Compiler(self._load())
            except ValueError as error:
                raise InvalidRequest(f"this model cannot follow constraints: {error}") from error
        return self._compiler


def no_vocabulary() -> Vocabulary:
    """For engines that were given no tokenizer."""
    raise ValueError("its tokenizer is not known to the engine")


def _num_bytes(constraint: Constraint) -> int:
    return BYTES_PER_GRAMMAR + BYTES_PER_CHAR * len(constraint.text)

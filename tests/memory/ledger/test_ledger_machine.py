"""Any order of opening, growing, publishing, copying and closing keeps the books."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from phloem.memory.ledger.keys import encode_tokens
from phloem.memory.ledger.ledger import Ledger

PAGE = 3


class Reader:
    """A holding and the tokens it stands for."""

    def __init__(self, holding, tokens, namespace):
        self.holding, self.tokens, self.namespace = holding, tokens, namespace
        self.num_computed = holding.num_hit_tokens
        self.copy = None


class LedgerMachine(RuleBasedStateMachine):
    """Page contents are modelled as what a real worker would have written: what is read back must be the sequence."""

    readers = Bundle("readers")

    @initialize(num_pages=st.integers(2, 14), retain=st.booleans())
    def start(self, num_pages, retain):
        self.ledger = Ledger(num_pages=num_pages, page_size=PAGE, retain=retain)
        self.slots = {}
        self.open = []

    @rule(
        target=readers,
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20),
        namespace=st.sampled_from(["", "salt"]),
        may_hit=st.booleans(),
    )
    def open_one(self, tokens, namespace, may_hit):
        match = self.ledger.match(
            encode_tokens(tokens), namespace=namespace, max_tokens=len(tokens) - 1 if may_hit else 0
        )
        holding, copy = self.ledger.open(match, namespace=namespace)
        reader = Reader(holding, tokens, namespace)
        reader.copy = copy
        if copy is not None:
            for slot in range(PAGE):
                self.slots[copy.target, slot] = self.slots.get((copy.source, slot))
        self.open.append(reader)
        return reader

    @rule(reader=readers, num_tokens=st.integers(1, 8), partial=st.booleans())
    def compute(self, reader, num_tokens, partial):
        if reader not in self.open:
            return
        goal = min(len(reader.tokens), reader.num_computed + num_tokens)
        missing = self.ledger.pages_for(goal) - len(reader.holding.pages)
        self.ledger.grow(reader.holding, max(0, min(missing, self.ledger.num_available)))
        goal = min(goal, reader.holding.capacity)
        for position in range(reader.num_computed, goal):
            page = reader.holding.pages[position // PAGE]
            self.slots[page, position % PAGE] = (reader.namespace, position, reader.tokens[position])
        reader.num_computed = goal
        self.settle(reader)
        self.ledger.publish(reader.holding, reader.tokens, goal, partial=partial)

    @rule(reader=consumes(readers))
    def close(self, reader):
        if reader in self.open:
            self.settle(reader)
            self.ledger.publish(reader.holding, reader.tokens, reader.num_computed, partial=True)
            self.ledger.close(reader.holding)
            self.open.remove(reader)

    def settle(self, reader):
        if reader.copy is not None:
            self.ledger.settle([reader.copy])
            reader.copy = None

    @invariant()
    def books_balance(self):
        if hasattr(self, "ledger"):
            self.ledger.check()
            assert self.open or self.ledger.stats().num_leased == 0

    @invariant()
    def every_reader_reads_its_own_tokens(self):
        for reader in getattr(self, "open", []):
            for position in range(reader.num_computed):
                slot = (reader.holding.pages[position // PAGE], position % PAGE)
                assert self.slots[slot] == (reader.namespace, position, reader.tokens[position])


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)

"""The part of a question that is exact because it comes from the index: citations, pseudo-code, fields, signatures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from viva.bank.cite import quote_hash
from viva.bank.schema import Citation, Field, Kind, Level, Module, Pseudocode, Signature
from viva.compose.abridge import abridged
from viva.compose.profile import Profile
from viva.compose.second import Prepared
from viva.evidence.fact import Span
from viva.index.facts import CLASS, FieldFact, Symbol
from viva.index.resolve import Resolver
from viva.index.trees import Trees
from viva.verify.quotes import overlap

MAX_FIELDS = 6
MAX_FIELD_LINES = 40
MAX_CITED_LINES = 60


class Slot(msgspec.Struct, frozen=True):
    """What one question is to be about."""

    number: int
    level: Level
    module: Module
    kind: Kind


class Skeleton(msgspec.Struct, frozen=True):
    """`c1` is the function, `c2` what it leads to, `c3` the structure, `c4` vLLM, `c5` the second system."""

    slot: Slot
    root: Profile
    lead: tuple[str, Symbol]
    owner: Symbol
    fields: tuple[FieldFact, ...]
    peer: Profile
    second: Prepared
    absent: str
    citations: tuple[Citation, ...]
    pseudocode: Pseudocode

    @property
    def id(self) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", self.root.name.lower()).strip("-")
        return f"q{self.slot.number:02d}-{words}"

    @property
    def names(self) -> tuple[str, ...]:
        """The vocabulary: what prose may name."""
        own = [self.root.name, self.root.symbol.name, self.lead[1].qualname, self.owner.qualname]
        told = [call.text for call in (*self.root.calls, *self.peer.calls)]
        return tuple(dict.fromkeys([*own, *told, *(item.name for item in self.fields), self.peer.name]))

    def claimed_fields(self) -> tuple[Field, ...]:
        owner = f"{self.owner.file}::{self.owner.qualname}"
        return tuple(Field(owner=owner, name=item.name, type=item.type or None) for item in self.fields)

    def claimed_signatures(self) -> tuple[Signature, ...]:
        chosen = (self.root.symbol, self.lead[1])
        return tuple(Signature(symbol=f"{item.file}::{item.qualname}", signature=item.signature) for item in chosen)


class Spans:
    """Spans that questions have cited: no two may cite nearly the same."""

    def __init__(self) -> None:
        self._taken: list[Citation] = []

    def is_free(self, citations: Sequence[Citation]) -> bool:
        return not any(
            known.file == new.file and known.source == new.source and overlap(known.lines, new.lines) >= 0.5
            for new in citations
            for known in self._taken
        )

    def take(self, citations: Sequence[Citation]) -> None:
        self._taken += citations


def structure_near(profile: Profile, resolver: Resolver) -> tuple[Symbol, tuple[FieldFact, ...]] | None:
    """The class whose fields the function works on: its own, else one of a file it leads to, else one beside it."""
    own = resolver.class_around(profile.symbol.file, profile.symbol.qualname)
    files = [profile.symbol.file, *(symbol.file for _, symbol in profile.leads)]
    near = [symbol for file in dict.fromkeys(files) for symbol in resolver.store.symbols_of(file)]
    for symbol in [*([own] if own else []), *(item for item in near if item.kind == CLASS)]:
        fields = _close_fields(resolver.store.fields_of(symbol.file, symbol.qualname))
        if len(fields) >= 3 and "<locals>" not in symbol.qualname:
            return symbol, fields
    return None


def _close_fields(fields: Sequence[FieldFact]) -> tuple[FieldFact, ...]:
    """Up to MAX_FIELDS neighbours, public names and typed ones first in the choice of where to look."""
    best: tuple[FieldFact, ...] = ()
    ordered = sorted({item.name: item for item in fields if len(item.name) > 2}.values(), key=lambda item: item.line)
    for start in range(len(ordered)):
        run = [item for item in ordered[start:] if item.line - ordered[start].line < MAX_FIELD_LINES][:MAX_FIELDS]
        if _worth(run) > _worth(best):
            best = tuple(run)
    return best


def _worth(run: Sequence[FieldFact]) -> int:
    return len(run) + sum(bool(item.type) for item in run)


def skeleton_of(
    slot: Slot, root: Profile, peer: Profile, second: Prepared, absent: str, resolvers: Mapping[str, Resolver],
    trees: Trees,
) -> Skeleton | None:  # fmt: skip
    """None where the function has nothing to lead to, no structure near it, or no short form."""
    subject = resolvers["subject"]
    structure = structure_near(root, subject)
    lead = root.leads[0] if root.leads else None
    text = abridged(root.symbol, root.node)
    if structure is None or lead is None or text is None:
        return None
    if slot.level >= 4:  # across files: what it leads to is written down, too
        below = abridged(lead[1], trees.function(lead[1]))
        text = f"{text}\n\n{below}" if below else text
    owner, fields = structure
    citations = (
        cited("c1", "subject", whole(root.symbol), subject),
        cited("c2", "subject", whole(lead[1]), subject),
        cited("c3", "subject", Span(owner.file, fields[0].line, fields[-1].line), subject),
        cited("c4", "vllm", whole(peer.symbol), resolvers["vllm"]),
        msgspec.structs.replace(second.citation, id="c5"),
    )
    return Skeleton(
        slot=slot, root=root, lead=lead, owner=owner, fields=fields, peer=peer, second=second,
        absent=absent if slot.kind == "false-premise" else "", citations=citations,
        pseudocode=Pseudocode(text=text + "\n"),
    )  # fmt: skip


def whole(symbol: Symbol) -> Span:
    return Span(symbol.file, symbol.line, min(symbol.end, symbol.line + MAX_CITED_LINES - 1))


def cited(citation_id: str, source: str, span: Span, resolver: Resolver) -> Citation:
    lines = resolver.store.lines(span.file)
    last = span.last
    while last > span.first and not lines[last - 1].strip():
        last -= 1
    quote = "\n".join(lines[span.first - 1 : last])
    return Citation(
        id=citation_id, source=source, file=span.file, lines=(span.first, last), sha256=quote_hash(quote), quote=quote
    )

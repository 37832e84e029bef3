"""Evidence -> plan -> sections under a grammar -> verify -> repair, a question at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from viva.bank.load import Bank
from viva.bank.schema import BankFile, Question
from viva.compose.assemble import drafted, question_of, section_of
from viva.compose.draft import drafts
from viva.compose.folder import RunFolder
from viva.compose.grammar import Section, holds, max_tokens, pattern_of
from viva.compose.pick import foreign_classes, profiles
from viva.compose.profile import Profile
from viva.compose.program import evidence_of, instruction_of
from viva.compose.second import Prepared, prepared
from viva.compose.skeleton import Skeleton, Slot, Spans, cited, skeleton_of, whole
from viva.compose.writer import Writer
from viva.index.resolve import Resolver
from viva.index.trees import Trees
from viva.verify.verify import Verifier

MAX_TRIED = 40  # skeletons for one slot


class Done(msgspec.Struct):
    """What came of a slot. `rounds` counts repairs; `templated` the sections that the index wrote in the end."""

    slot: Slot
    question: Question | None
    rounds: int = 0
    templated: int = 0
    faults: list[str] = []


class Composer:
    """Composes the questions of one run. `resolvers` are those of the subject, under its id, and of vLLM."""

    def __init__(
        self, file: BankFile, resolvers: Mapping[str, Resolver], topics: Mapping[str, str], writer: Writer,
        folder: RunFolder, *, max_rounds: int,
    ) -> None:  # fmt: skip
        bank = Bank(folder=folder.out, file=file, questions=(), paths={})
        self._subject = bank.subject.id
        self._verifier = Verifier(bank, resolvers)
        self._resolvers = {"subject": resolvers[self._subject], "vllm": resolvers["vllm"]}
        self._trees = Trees(resolvers[self._subject])
        self._writer, self._folder, self._max_rounds = writer, folder, max_rounds
        self._roots = profiles(resolvers[self._subject], topics)
        self._peers = profiles(resolvers["vllm"], topics)
        self._absent = foreign_classes(resolvers["vllm"], resolvers[self._subject])
        self._spans = Spans()
        self._used: set[str] = set()

    def known(self, question: Question) -> None:
        """A question of an earlier run: its spans are taken."""
        self._spans.take(question.citations)
        self._used.add(question.id.partition("-")[2])

    def compose(self, slot: Slot) -> Done:
        """One question: the first skeleton that the verifier has nothing against, then its prose."""
        skeleton = self._skeleton(slot)
        if skeleton is None:
            return Done(slot, None, faults=["the source has no function with enough evidence left for this place"])
        done = self._written(skeleton)
        if done.question is not None:
            self._folder.keep(slot.number, done.question)
        return done

    def _skeleton(self, slot: Slot) -> Skeleton | None:
        absent = next(self._absent, "") if slot.kind == "false-premise" else ""
        for skeleton in self._skeletons(slot, absent):
            question = question_of(skeleton, drafted(skeleton), subject=self._subject)
            if self._spans.is_free(question.citations) and not self._verifier.question(question).faults:
                self._spans.take(question.citations)
                self._used.add(skeleton.id.partition("-")[2])
                return skeleton
        return None

    def _skeletons(self, slot: Slot, absent: str) -> Iterator[Skeleton]:
        roots = self._roots[slot.module][:MAX_TRIED]
        for root in roots:
            for peer, second in self._comparisons(slot):
                skeleton = skeleton_of(slot, root, peer, second, absent, self._resolvers, self._trees)
                if skeleton is not None and skeleton.id.partition("-")[2] not in self._used:
                    yield skeleton
                break

    def _comparisons(self, slot: Slot) -> Iterator[tuple[Profile, Prepared]]:
        """Free spans of vLLM and of a second system, of the same module where there are any."""
        peers = [one for one in self._peers[slot.module] if one.symbol.qualname not in self._used]
        ordered = sorted(prepared(), key=lambda item: item.module != slot.module)
        seconds = [item for item in ordered if self._spans.is_free([item.citation])]
        if seconds:
            for peer in peers:
                if self._spans.is_free([cited("c4", "vllm", whole(peer.symbol), self._resolvers["vllm"])]):
                    yield peer, seconds[0]

    def _written(self, skeleton: Skeleton) -> Done:
        places = drafts(skeleton)
        texts = drafted(skeleton)
        faults: dict[str, list[str]] = {name: [] for name in places}  # what is still to be written, and why
        done = Done(skeleton.slot, None)
        for number in range(self._max_rounds + 1):
            done.rounds = number
            sections = [self._section(skeleton, name, faults[name]) for name in faults]
            said = self._writer.write(evidence_of(skeleton), sections, seed=number)
            texts |= said
            faults = self._refused(skeleton, sections, texts)
            self._note(skeleton, number, sections, said, faults)
            if not faults:
                done.question = question_of(skeleton, texts, subject=self._subject)
                return done
        done.faults = [line for lines in faults.values() for line in lines]
        if self._writer.style == "told":  # the model could not: the index's own words stand in
            done.templated = len(faults)
            texts |= {name: drafted(skeleton)[name] for name in faults}
            question = question_of(skeleton, texts, subject=self._subject)
            done.question = question if not self._verifier.question(question).faults else None
        return done

    def _section(self, skeleton: Skeleton, name: str, faults: list[str]) -> Section:
        places = drafts(skeleton)[name]
        style = self._writer.style
        instruction = instruction_of(name, drafted(skeleton)[name], faults)
        return Section(name, instruction, pattern_of(name, places, skeleton, style), max_tokens(places, style))

    def _refused(self, skeleton: Skeleton, sections: list[Section], texts: dict[str, str]) -> dict[str, list[str]]:
        """The sections to write again with the reasons: the grammar's, then the verifier's."""
        refused = {
            section.name: ["it is cut off or has not the asked form: Chinese prose, names of the list, markers"]
            for section in sections
            if not holds(section, texts[section.name])
        }
        if refused:
            return refused
        for fault in self._verifier.question(question_of(skeleton, texts, subject=self._subject)).faults:
            refused.setdefault(section_of(fault.section) or "overview", []).append(f"{fault.section}: {fault.message}")
        return refused

    def _note(
        self, skeleton: Skeleton, number: int, sections: list[Section], said: dict[str, str],
        faults: dict[str, list[str]],
    ) -> None:  # fmt: skip
        self._folder.note(
            f"rounds/{skeleton.id}-{number}.json",
            {"evidence": evidence_of(skeleton), "sections": sections, "said": said, "faults": faults},
        )

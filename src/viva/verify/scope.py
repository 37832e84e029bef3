"""Which names a question may use: those of the files it cites, and full names that the pinned source has anywhere."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable, Mapping

from viva.bank.schema import Question
from viva.index.facts import CLASS, Symbol
from viva.index.resolve import Member, Resolver

BUILTINS = frozenset(dir(builtins)) | frozenset(keyword.kwlist) | {"self", "cls", "match", "case"}
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Names of systems and tools that no question needs to declare.
COMMON_TERMS = frozenset(
    {
        *("PyTorch", "TensorRT", "FlashInfer", "FlashAttention", "DeepSeek", "OpenAI", "NVLink", "NumPy", "FastAPI"),
        *("RadixAttention", "PagedAttention", "AllReduce", "AllGather", "ReduceScatter"),
    }
)


class Scope:
    """The names around one question. `resolvers` has the sources that are fetched; of the others only the quotes are
    known. `skipped` are those that could be fetched: the names in comparisons with them are left alone."""

    def __init__(
        self,
        question: Question,
        resolvers: Mapping[str, Resolver],
        *,
        subject: str,
        terms: Iterable[str] = (),
        skipped: Iterable[str] = (),
    ) -> None:
        self.skipped = frozenset(skipped)
        self.question = question
        self.resolvers = resolvers
        self.subject = resolvers[subject]
        self.cited: dict[str, list[str]] = {}  # source -> files
        self.quoted_names: set[str] = set()
        for citation in question.citations:
            files = self.cited.setdefault(citation.source, [])
            if citation.file not in files:
                files.append(citation.file)
            if citation.source not in resolvers:
                self.quoted_names.update(WORD.findall(citation.quote), WORD.findall(citation.file))
        self.subject_files = [path for path in self.cited.get(subject, []) if self.subject.store.has_file(path)]
        self.file_names = {
            source: frozenset().union(*(file_names(resolver, path) for path in self.cited.get(source, [])))
            for source, resolver in resolvers.items()
        }
        self.names = frozenset().union(*self.file_names.values())
        declared = [*question.terms, *terms, *question.answer.pseudocode.locals, *question.answer.pseudocode.foreign]
        self.declared = frozenset(declared)
        self.declared_words = frozenset(word for term in declared for word in WORD.findall(term)) | COMMON_TERMS
        self.absent = frozenset(question.premise.absent if question.premise else ())
        self.proposed = frozenset(question.answer.proposed)

    def is_declared(self, chain: str, *, proposing: bool = False) -> bool:
        """Whether the question says that a name is no name of the source."""
        allowed = self.declared | self.absent | (self.proposed if proposing else frozenset())
        head = chain.partition(".")[0]
        return chain in allowed or head in allowed or chain in self.declared_words or head in COMMON_TERMS

    def trouble_with(self, chain: str) -> str | None:
        """Why a dotted chain of identifiers does not resolve; None if it does."""
        parts = [part for part in chain.split(".") if part and part not in ("?", "self", "cls")]
        parts = [part for part in parts if len(part) > 1 and part not in BUILTINS]
        if not parts:
            return None
        if len(parts) > 1:
            verdict = self._member_trouble(".".join(parts))
            if verdict != "unknown":
                return verdict
        unknown = [part for part in parts if part not in self.names and part not in self.quoted_names]
        unknown = [
            part for part in unknown if part not in self.declared_words and part not in self.proposed | self.absent
        ]
        if not unknown or (len(parts) > 1 and self.resolves_anywhere(".".join(parts))):
            return None
        return self._unknown(unknown[0])

    def _member_trouble(self, chain: str) -> str | None:
        """For `Class.member`: None if a class of that name has it, a message if none has; `unknown` if that is open."""
        owner, _, member = chain.rpartition(".")
        seen: list[tuple[Resolver, Symbol]] = []
        for source, resolver in self.resolvers.items():
            classes = [symbol for symbol in resolver.find(owner) if symbol.kind == CLASS]
            cited = [symbol for symbol in classes if symbol.file in self.cited.get(source, [])]
            for symbol in cited or classes:
                if member in resolver.members(symbol):
                    return None
                seen.append((resolver, symbol))
        if not seen or any(resolver.outside_bases(symbol) for resolver, symbol in seen):
            return "unknown"
        resolver, symbol = seen[0]
        near = resolver.nearest(member, among=resolver.members(symbol))
        return f"{owner} ({symbol.file}:{symbol.line}) has no member {member!r}{_nearest(near)}"

    def resolves_anywhere(self, chain: str) -> bool:
        """Whether a checked source has a symbol or module of this full name."""
        return any(
            resolver.find(chain) or resolver.module_file(chain) or _module_member(resolver, chain)
            for resolver in self.resolvers.values()
        )

    def _unknown(self, name: str) -> str:
        for resolver in self.resolvers.values():
            homes: list[Member] = [*resolver.store.symbols_named(name), *resolver.store.fields_named(name)]
            for home in homes[:1]:
                place = f"{home.file}:{home.line}"
                return f"{name!r} is in no file this question cites; {place} defines it: cite it"
        near = self.subject.nearest(name, among=self.names)
        return f"{name!r} is nowhere in the pinned sources as far as this question cites them{_nearest(near)}"

    def has_flag(self, flag: str) -> bool:
        """Whether a command-line flag is a string of a source, or the name of a field that a parser is made from."""
        field = flag.removeprefix("--").replace("-", "_")
        return (
            any(
                flag in resolver.store.all_strings() or resolver.store.fields_named(field)
                for resolver in self.resolvers.values()
            )
            or set(WORD.findall(flag)) <= self.quoted_names
        )

    def has_path(self, path: str) -> bool:
        """Whether a source has this file, named from its root or by its last parts, or a citation is of it."""
        cited = [file for files in self.cited.values() for file in files]
        known = [*cited, *(file for resolver in self.resolvers.values() for file in resolver.store.paths())]
        return path in self.absent or any(file == path or file.endswith(f"/{path}") for file in known)

    def has_string(self, word: str) -> bool:
        """Whether a name such as an environment variable is a string constant of a source."""
        return any(word in resolver.store.all_strings() for resolver in self.resolvers.values())


def file_names(resolver: Resolver, path: str) -> frozenset[str]:
    """The identifiers and one-word strings of a file, and the parts of its path; all words of one that is no Python."""
    if not resolver.store.has_file(path):
        return frozenset()
    parts = WORD.findall(path)
    if path.endswith(".py"):
        strings = {word for text in resolver.store.strings(path) for word in WORD.findall(text)}
        return resolver.store.names(path) | strings | frozenset(parts)
    return frozenset(WORD.findall(resolver.store.text(path))) | frozenset(parts)


def _module_member(resolver: Resolver, chain: str) -> bool:
    module, _, name = chain.rpartition(".")
    path = resolver.module_file(module)
    return bool(path and resolver.in_file(path, name))


def _nearest(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"; nearest: {listed}" if listed else ""

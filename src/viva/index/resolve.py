"""Names to definitions: imports followed, classes linearised, calls resolved as far as the source alone allows."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Sequence

from viva.errors import LookupFailed
from viva.index.extract import OR
from viva.index.facts import CLASS, METHOD, MODULE, CallFact, FieldFact, ImportFact, Symbol
from viva.index.store import Store

MAX_IMPORT_HOPS = 6
# Bases without members of their own that a claim could be about.
PLAIN_BASES = frozenset({"object", "ABC", "abc.ABC", "Generic", "Protocol", "typing.Protocol", "typing.Generic"})

Member = Symbol | FieldFact


class Resolver:
    """Answers questions about the definitions of one source. Results are kept: the index does not change."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._imports: dict[str, dict[str, ImportFact]] = {}
        self._stars: dict[str, list[str]] = {}
        self._mros: dict[tuple[str, int], tuple[Symbol, ...]] = {}
        self._members: dict[tuple[str, int], dict[str, Member]] = {}
        self._subclasses: dict[str, list[Symbol]] | None = None

    # --- modules and names ---

    def module_file(self, module: str) -> str | None:
        """The file of a dotted module name."""
        base = module.replace(".", "/")
        return next((path for path in (f"{base}.py", f"{base}/__init__.py") if self.store.has_file(path)), None)

    def imports(self, path: str) -> dict[str, ImportFact]:
        """What each imported name of a file stands for, whatever function the import is in."""
        if path not in self._imports:
            found = self.store.imports_of(path)
            self._imports[path] = {item.alias: item for item in found if item.alias != "*"}
            self._stars[path] = [item.target.removesuffix(".*") for item in found if item.alias == "*"]
        return self._imports[path]

    def in_file(self, path: str, name: str, *, hops: int = MAX_IMPORT_HOPS) -> Member | None:
        """What a dotted name means at module level of a file: its definition, wherever imports lead."""
        head, _, rest = name.partition(".")
        symbols = self.store.symbols_of(path, head)
        if symbols:
            return self._below(symbols[-1], rest)
        if not hops:
            return None
        imported = self.imports(path).get(head)
        if imported is not None:
            return self._target(f"{imported.target}.{rest}" if rest else imported.target, hops=hops - 1)
        field = next((field for field in self.store.fields_of(path, "") if field.name == head), None)
        if field is not None and not rest:
            return field
        for module in self._stars[path]:
            file = self.module_file(module)
            found = self.in_file(file, name, hops=hops - 1) if file and file != path else None
            if found is not None:
                return found
        return None

    def _target(self, target: str, *, hops: int) -> Member | None:
        """What `package.module.name.below` means."""
        parts = target.split(".")
        for cut in range(len(parts), 0, -1):
            file = self.module_file(".".join(parts[:cut]))
            if file is not None:
                rest = ".".join(parts[cut:])
                return self.in_file(file, rest, hops=hops) if rest else self.store.symbols_of(file, "")[0]
        return None

    def _below(self, symbol: Symbol, rest: str) -> Member | None:
        found: Member | None = symbol
        for part in rest.split(".") if rest else []:
            if not isinstance(found, Symbol) or found.kind != CLASS:
                return None
            found = self.members(found).get(part)
        return found

    def find(self, name: str, *, files: Iterable[str] | None = None) -> list[Symbol]:
        """The symbols that a name can mean: `run`, `Scheduler.run`, `package.module.Scheduler.run` or
        `package/module.py::Scheduler.run`. A method may be inherited. Files limit where to look."""
        path, colons, inside = name.partition("::")
        if colons:
            found = self.store.symbols_of(path, inside)
            return found or self._inherited(inside, [path])
        within = None if files is None else set(files)
        named = self.store.symbols_named(name.rpartition(".")[2])
        allowed = [symbol for symbol in named if within is None or symbol.file in within]
        exact = [symbol for symbol in allowed if symbol.qualname == name]
        if exact:
            return exact
        suffix = [symbol for symbol in allowed if f".{full_name(symbol)}".endswith(f".{name}")]
        return suffix or self._inherited(name, within)

    def _inherited(self, name: str, files: Iterable[str] | None) -> list[Symbol]:
        owner, _, last = name.rpartition(".")
        if not owner:
            return []
        classes = [symbol for symbol in self.find(owner, files=files) if symbol.kind == CLASS]
        members = [self.members(symbol).get(last) for symbol in classes]
        return [member for member in members if isinstance(member, Symbol)]

    def find_one(self, name: str, *, files: Iterable[str] | None = None) -> Symbol:
        """The one symbol of a name; LookupFailed names the candidates or the nearest names."""
        found = self.find(name, files=files)
        if not found:
            near = self.nearest(name)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise LookupFailed(f"{self.store.name} has no symbol {name!r}{hint}", field=name)
        if len({(symbol.file, symbol.qualname) for symbol in found}) > 1:
            listed = ", ".join(f"{symbol.file}::{symbol.qualname}" for symbol in found[:6])
            more = f" and {len(found) - 6} more" if len(found) > 6 else ""
            raise LookupFailed(f"{name!r} is defined {len(found)} times: {listed}{more}", field=name)
        return found[0]

    def nearest(self, name: str, *, among: Iterable[str] | None = None) -> list[str]:
        """Existing names like this one, best first."""
        last = name.rpartition(".")[2].removesuffix("()")
        words = set(among) if among is not None else {symbol.name for symbol in self.store.classes()}
        return difflib.get_close_matches(last, words, n=3, cutoff=0.7)

    # --- classes ---

    def bases(self, symbol: Symbol) -> tuple[list[Symbol], list[str]]:
        """The base classes that are in the source, and the texts of those that are not."""
        inside: list[Symbol] = []
        outside: list[str] = []
        for text in symbol.bases:
            name = text.partition("[")[0]
            found = self.in_file(symbol.file, name)
            if isinstance(found, Symbol) and found.kind == CLASS and found != symbol:
                inside.append(found)
            elif name not in PLAIN_BASES:
                outside.append(text)
        return inside, outside

    def mro(self, symbol: Symbol) -> tuple[Symbol, ...]:
        """The class and its bases in Python's order of resolution, as far as they are in the source."""
        key = (symbol.file, symbol.line)
        if key not in self._mros:
            self._mros[key] = (symbol,)  # against a cycle of bases
            bases = self.bases(symbol)[0]
            self._mros[key] = (symbol, *_merge([*(list(self.mro(base)) for base in bases), bases]))
        return self._mros[key]

    def outside_bases(self, symbol: Symbol) -> list[str]:
        """The bases, at any height, of which the source does not have the definition."""
        return [text for base in self.mro(symbol) for text in self.bases(base)[1]]

    def members(self, symbol: Symbol) -> dict[str, Member]:
        """Methods, nested classes and fields by name; the nearest in the order of resolution wins."""
        key = (symbol.file, symbol.line)
        if key not in self._members:
            found: dict[str, Member] = {}
            for base in self.mro(symbol):
                for member in self._own_members(base):
                    known = found.setdefault(member.name, member)
                    if (
                        isinstance(known, FieldFact)
                        and not known.type
                        and isinstance(member, FieldFact)
                        and member.type
                    ):
                        found[member.name] = member
            self._members[key] = found
        return self._members[key]

    def _own_members(self, symbol: Symbol) -> list[Member]:
        inside = [item for item in self.store.symbols_of(symbol.file) if symbol.line < item.line <= symbol.end]
        own: list[Member] = [item for item in inside if item.qualname == f"{symbol.qualname}.{item.name}"]
        return [*own, *self.store.fields_of(symbol.file, symbol.qualname)]

    def subclasses(self, symbol: Symbol) -> list[Symbol]:
        """The direct subclasses in the source."""
        if self._subclasses is None:
            self._subclasses = {}
            for item in self.store.classes():
                for text in item.bases:
                    self._subclasses.setdefault(text.partition("[")[0].rpartition(".")[2], []).append(item)
        return [item for item in self._subclasses.get(symbol.name, []) if symbol in self.bases(item)[0]]

    # --- calls ---

    def callees(self, symbol: Symbol) -> list[tuple[CallFact, list[Symbol]]]:
        """The calls of a function in order, each with what it may reach; nothing where the source does not say."""
        return [(call, self.reached(call)) for call in self.store.calls_of(symbol.file, symbol.qualname)]

    def reached(self, call: CallFact) -> list[Symbol]:
        """What a call may reach: one symbol where names and annotations say it, else nothing."""
        found = self._meaning(call.file, call.caller, call.callee)
        return [found] if isinstance(found, Symbol) and found.kind != MODULE else []

    def _meaning(self, path: str, caller: str, text: str) -> Member | None:
        head, *rest = text.split(".")
        owner = self.class_around(path, caller)
        found: Member | None
        if head in ("self", "cls") and owner is not None:
            found = self._local(path, caller, head) or owner  # a mixin annotates the class it is mixed into
        elif head == "super()" and owner is not None and rest:
            above = [base for base in self.mro(owner)[1:] if rest[0] in {item.name for item in self._own_members(base)}]
            found = above[0] if above else None
        else:
            found = self._local(path, caller, head) or self.in_file(path, head.removesuffix("()"))
        for part in rest:
            if isinstance(found, FieldFact):
                found = self.class_of_annotation(found.file, found.type or _constructor(found.value))
            if not isinstance(found, Symbol):
                return None
            if found.kind == MODULE:
                found = self.in_file(found.file, part)
            elif found.kind == CLASS:
                found = self.members(found).get(part)
            else:
                return None
        return found

    def _local(self, path: str, caller: str, name: str) -> Member | None:
        """A nested function, or the class that annotates a parameter of that name."""
        nested = self.store.symbols_of(path, f"{caller}.<locals>.{name}")
        if nested:
            return nested[0]
        for symbol in self.store.symbols_of(path, caller):
            annotation = parameter_annotations(symbol.signature).get(name)
            if annotation:
                return self.class_of_annotation(path, annotation)
        return None

    def class_around(self, path: str, qualname: str) -> Symbol | None:
        """The class whose method (or a function nested in it) this is."""
        parts = qualname.partition(".<locals>")[0].split(".")
        for cut in range(len(parts) - 1, 0, -1):
            found = self.store.symbols_of(path, ".".join(parts[:cut]))
            if found and found[0].kind == CLASS:
                return found[0]
        return None

    def class_of_annotation(self, path: str, annotation: str) -> Symbol | None:
        """The one class of the source in an annotation such as `Optional[Req]` or `'Req | None'`."""
        try:
            tree = ast.parse(annotation.strip("'\""), mode="eval")
        except SyntaxError:
            return None
        texts = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)]
        found = [self.in_file(path, text) for text in texts]
        classes = {
            (item.file, item.qualname): item for item in found if isinstance(item, Symbol) and item.kind == CLASS
        }
        return next(iter(classes.values())) if len(classes) == 1 else None

    def callers(self, symbol: Symbol) -> tuple[list[CallFact], list[CallFact]]:
        """The calls that reach a symbol, and those of the same name that may: the source does not say of what."""
        name = symbol.owner.rpartition(".")[2] if symbol.name == "__init__" else symbol.name
        sure: list[CallFact] = []
        perhaps: list[CallFact] = []
        for call in self.store.calls_named(name):
            reached = self.reached(call)
            if any(item in (symbol, self._constructed(symbol)) for item in reached):
                sure.append(call)
            elif not reached and (symbol.kind != METHOD or "." in call.callee):
                perhaps.append(call)
        return sure, perhaps

    def _constructed(self, symbol: Symbol) -> Symbol | None:
        return self.class_around(symbol.file, symbol.qualname) if symbol.name == "__init__" else None


def full_name(symbol: Symbol) -> str:
    """`package.module.Class.method`."""
    module = symbol.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"{module}.{symbol.qualname}" if symbol.qualname else module


def parameter_annotations(signature: str) -> dict[str, str]:
    """The annotation of each annotated parameter of a signature's text."""
    if not signature:
        return {}
    node = ast.parse(f"def f{signature}: ...").body[0]
    assert isinstance(node, ast.FunctionDef)
    items = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return {item.arg: ast.unparse(item.annotation) for item in items if item.annotation}


def _is_untyped(member: Member) -> bool:
    return isinstance(member, FieldFact) and not member.type


def _constructor(value: str) -> str:
    """The class of a field that is only ever assigned one call, and perhaps None."""
    calls = [text for text in value.split(OR) if text != "None"]
    return calls[0].partition("(")[0] if len(calls) == 1 and calls[0].endswith(")") else ""


def _merge(sequences: Sequence[list[Symbol]]) -> list[Symbol]:
    """C3; where the bases contradict each other (no Python would load them), the first comes first."""
    merged: list[Symbol] = []
    left = [list(sequence) for sequence in sequences if sequence]
    while left:
        tails = {(item.file, item.line) for sequence in left for item in sequence[1:]}
        heads = [sequence[0] for sequence in left]
        best = next((head for head in heads if (head.file, head.line) not in tails), heads[0])
        merged.append(best)
        left = [[item for item in sequence if item != best] for sequence in left]
        left = [sequence for sequence in left if sequence]
    return merged

"""What the index knows of a file."""

from __future__ import annotations

import msgspec

MODULE, CLASS, FUNCTION, METHOD = "module", "class", "function", "method"


class Symbol(msgspec.Struct, frozen=True):
    """A module, class or function. `qualname` is its name in the module (`Scheduler.run`, `outer.<locals>.inner`; empty
    for the module). `begin` is the first decorator's line, `line` the def's. `bases` are texts, as written."""

    file: str
    qualname: str
    kind: str
    begin: int
    line: int
    end: int
    signature: str = ""
    bases: tuple[str, ...] = ()
    decorators: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.qualname.rpartition(".")[2]

    @property
    def owner(self) -> str:
        """The class of a method, the function of a nested one, empty at module level."""
        return self.qualname.rpartition(".")[0].removesuffix(".<locals>")


class FieldFact(msgspec.Struct, frozen=True):
    """A name that a class (or, with an empty `owner`, a module) holds. `how`: class (its body), self (assigned in a
    method), slots, module. `type` is the annotation, or that of the parameter it is assigned from."""

    file: str
    owner: str
    name: str
    type: str
    value: str
    line: int
    how: str


class CallFact(msgspec.Struct, frozen=True):
    """The `seq`-th call of `caller` (a qualname), in order of evaluation."""

    file: str
    caller: str
    seq: int
    line: int
    callee: str


class ImportFact(msgspec.Struct, frozen=True):
    """`alias` stands for `target` (`package.module.name`; `package.module.*` for a star) in `scope`, a qualname."""

    file: str
    scope: str
    alias: str
    target: str
    line: int


class FileFacts(msgspec.Struct, frozen=True):
    """One file. `fault` says why a Python file gave no facts."""

    path: str
    sha256: str
    num_bytes: int
    num_lines: int
    text: bytes  # zlib
    fault: str = ""
    symbols: tuple[Symbol, ...] = ()
    fields: tuple[FieldFact, ...] = ()
    calls: tuple[CallFact, ...] = ()
    imports: tuple[ImportFact, ...] = ()
    names: bytes = b""  # zlib, sorted identifiers that the code uses, joined by line feeds
    strings: bytes = b""  # zlib, sorted one-word string constants: flags, keys, environment variables

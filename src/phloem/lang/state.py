"""The author's `s`: what is done to it becomes nodes. One State a branch; its blocks mirror the open `with` statements.

A variable read into a Python name is remembered with the moment of reading. Used after it was set again, or inside a
loop that sets it again, Python's value and the program's would differ: that is an error, never a guess.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import msgspec

from phloem.lang.expr import AnyExpr, Const, Item
from phloem.lang.ir import AnyNode, Block, Call, Fork, If, Join, Map, Role, Select, SetVar, Text, Turn, While
from phloem.lang.pieces import GenPiece, Piece, SelectPiece, TextPiece, TurnPiece, pieces_of
from phloem.lang.traced import Read, Value, lift, variable
from phloem.lang.where import Where, trace_error, where

TypePath = tuple[str | int | None, ...]
"""Where a typed variable is in a result: fork, branch (None: every one of a Map), fork within, branch ..., its name."""


class Numbers:
    """Sites and versions of one trace, and the types its generations have."""

    def __init__(self) -> None:
        self.sites = itertools.count(1)
        self.versions = itertools.count(1)
        self.types: dict[TypePath, type] = {}


class OpenBlock:
    """A `with` statement that is open, or the program's body."""

    def __init__(self, *, is_loop: bool = False) -> None:
        self.nodes: list[AnyNode] = []
        self.forks: dict[str, tuple[int, Branches]] = {}  # open: where the node is, the branches
        self.sets: set[str] = set()
        self.uses_from_outside: dict[str, Where] = {}
        self.is_loop = is_loop
        self.before_if: dict[str, int] | None = None  # versions before the If that came last


class State:
    """What was said so far, and the variables. `s += ...` says more; `s["x"]` reads and `s["x"] = ...` sets one."""

    def __init__(
        self, numbers: Numbers, *, parent: State | None = None, place: tuple[str, int | None] | None = None
    ) -> None:
        self._numbers = numbers
        self._parent, self._place = parent, place
        self._path: TypePath = (*parent._path, *place) if parent is not None and place is not None else ()
        self._home = parent._blocks[-1] if parent is not None else None
        self._chain: tuple[OpenBlock, ...] = (*parent._chain, *parent._blocks) if parent is not None else ()
        self._versions: dict[str, int] = dict(parent._versions) if parent is not None else {}
        self._blocks: list[OpenBlock] = [OpenBlock()]
        self._is_closed = False

    # -- saying

    def __iadd__(self, said: Any) -> State:
        for piece in pieces_of(said):
            self._say(piece)
        return self

    @contextmanager
    def turn(self, role: Role) -> Iterator[None]:
        """A turn of a conversation; what is said inside is its content."""
        with self._inside(OpenBlock()) as block:
            yield
        self._add(Turn(role=role, body=tuple(block.nodes)))

    def system(self) -> Any:
        """`with s.system():` a system turn."""
        return self.turn("system")

    def user(self) -> Any:
        """`with s.user():` a user turn."""
        return self.turn("user")

    def assistant(self) -> Any:
        """`with s.assistant():` an assistant turn."""
        return self.turn("assistant")

    # -- variables

    def __getitem__(self, name: str) -> Value:
        _named(name)
        if self._is_closed:
            assert self._parent is not None
            assert self._place is not None
            fork, index = self._place
            if index is None:
                message = f'after its block a Map is a list of records: read s["{fork}"], or s["{fork}"][0]["{name}"]'
                raise trace_error(message)
            records = self._parent[fork]
            return Value(Item(Item(records.expr, Const(index)), Const(name)), records.reads)
        blocks = (*self._chain, *self._blocks)
        return variable(Read(name, state=self, version=self._versions.get(name, 0), blocks=blocks))

    def __iter__(self) -> NoReturn:
        raise trace_error("a state has no list of its variables; name those that you want: s[...]")

    def __contains__(self, name: object) -> NoReturn:
        raise trace_error("whether a variable has a value is decided by where you read it; set it before, to be sure")

    def __setitem__(self, name: str, value: Any) -> None:
        self.assign(name, lift(value))

    def assign(self, name: str, value: Value, *, at: str = "") -> None:
        """A variable gets a value; `at` is where, if not here."""
        self._add(SetVar(name=_named(name), value=self.expression(value), at=at))

    def call(self, function: str, *args: Any, name: str | None = None) -> Value:
        """Call a function that the operator registered; its value is variable `name`."""
        name = _named(name or f"{function}_{next(self._numbers.versions)}")
        self._add(Call(name=name, function=function, args=tuple(self.expression(lift(arg)) for arg in args)))
        return self[name]

    # -- control flow

    @contextmanager
    def If(self, condition: Any) -> Iterator[None]:
        """`with s.If(s["x"] == "yes"):` run the block if it holds."""
        expr, before = self.expression(lift(condition)), dict(self._versions)
        with self._inside(OpenBlock()) as block:
            yield
        self._add(If(condition=expr, then=tuple(block.nodes)))
        self._outdate(block.sets)
        self._blocks[-1].before_if = before

    @contextmanager
    def Else(self) -> Iterator[None]:
        """`with s.Else():` directly after an If."""
        outer = self._blocks[-1]
        last = outer.nodes[-1] if outer.nodes else None
        if not isinstance(last, If) or outer.before_if is None:
            raise trace_error("s.Else() must stand directly after the block of an s.If(...)")
        self._versions = dict(outer.before_if)
        with self._inside(OpenBlock()) as block:
            yield
        outer.nodes[-1] = msgspec.structs.replace(last, orelse=tuple(block.nodes))
        outer.before_if = None
        self._outdate(outer.sets | block.sets)

    @contextmanager
    def While(self, condition: Any, *, max_iterations: int) -> Iterator[None]:
        """`with s.While(~s["done"], max_iterations=8):` the condition is asked before each iteration."""
        expr = self.expression(lift(condition))
        with self._inside(OpenBlock(is_loop=True)) as block:
            yield
        for name, at in block.uses_from_outside.items():
            if name in block.sets:
                raise trace_error(
                    f"{name!r} was read before the loop, and the loop sets it again; read s[{name!r}] inside", at=at
                )
        self._add(While(condition=expr, max_iterations=max_iterations, body=tuple(block.nodes)))
        self._outdate(block.sets)

    @contextmanager
    def Map(self, items: Any, *, item: str = "item", name: str = "mapped") -> Iterator[State]:
        """`with s.Map(s["list"], item="line", name="notes") as m:` a branch an item; `s["notes"]` are their records."""
        expr, at = self.expression(lift(items)), where().short
        branch = State(self._numbers, parent=self, place=(name, None))
        branch._forget(item)
        yield branch
        body = branch.close()
        self._add(Map(name=_named(name), items=expr, item=_named(item), body=body, at=at))
        self._add(Join(fork=name, at=at))

    def fork(self, num_branches: Any, *, name: str | None = None) -> Branches:
        """Copies of this state, to go on with separately, at once."""
        if not isinstance(num_branches, int) or num_branches < 1:
            raise trace_error("s.fork takes a number of branches, at least 1, that is known now; use s.Map for a list")
        block = self._blocks[-1]
        name = _named(name or f"fork_{next(self._numbers.versions)}")
        branches = Branches(name, [State(self._numbers, parent=self, place=(name, i)) for i in range(num_branches)])
        self._add(Fork(name=name, branches=((),) * num_branches))
        block.forks[name] = (len(block.nodes) - 1, branches)
        return branches

    def join(self, branches: Branches, *, append: bool = False) -> Value:
        """Wait for the branches; from then on `branch["x"]` can be read here. Their records, as a list."""
        block = self._blocks[-1]
        if branches.name not in block.forks:
            raise trace_error("these branches are joined already, or were forked in another block or state")
        index, _ = block.forks.pop(branches.name)
        fork = block.nodes[index]
        assert isinstance(fork, Fork)
        block.nodes[index] = msgspec.structs.replace(fork, branches=tuple(branch.close() for branch in branches))
        self._add(Join(fork=branches.name, append=append))
        return self[branches.name]

    # -- inside

    def _say(self, piece: Piece) -> None:
        match piece:
            case TextPiece():
                self._add(Text(value=self.expression(piece.value), commutable=piece.commutable))
            case GenPiece():
                self._add(piece.node)
                if piece.type is not None:
                    self._numbers.types[(*self._path, piece.node.name)] = piece.type
            case SelectPiece():
                self._add(Select(name=piece.name, choices=self.expression(piece.choices), method=piece.method))
            case TurnPiece():
                with self.turn(piece.role):
                    for inner in piece.said.pieces:
                        self._say(inner)

    def _add(self, node: AnyNode) -> None:
        """Append a node to the innermost block, with its number and line; note what it sets."""
        self._expect_open()
        at = node.at or where().short
        self._blocks[-1].nodes.append(msgspec.structs.replace(node, site=next(self._numbers.sites), at=at))
        self._blocks[-1].before_if = None
        match node:
            case Call(name=name) | SetVar(name=name) | Select(name=name) | Join(fork=name):
                self._outdate({name})
            case Text() | Turn() | If() | While() | Fork() | Map():
                pass
            case _:
                self._outdate({node.name})

    def _expect_open(self) -> None:
        if self._is_closed:
            raise trace_error("this branch is joined already; say it before the join")
        if self._parent is not None and self._parent._blocks[-1] is not self._home:
            raise trace_error("a branch goes on in the block where it was forked, not in a block opened since")

    def expression(self, value: Value) -> AnyExpr:
        """The value's expression, if what it read is still what the variables are."""
        for read in value.reads:
            state: State | None = self
            while state is not None and state is not read.state:
                state = state._parent
            if state is None:
                raise trace_error(f"{read.name!r} belongs to another branch; join it first")
            if self._versions.get(read.name, 0) != read.version:
                raise trace_error(f"{read.name!r} was set again since it was read; read s[{read.name!r}] again")
            for block in (*self._chain, *self._blocks):
                if block.is_loop and block not in read.blocks:
                    block.uses_from_outside.setdefault(read.name, where())
        return value.expr

    def _outdate(self, names: set[str]) -> None:
        """These variables have new values from here on."""
        for name in names:
            self._numbers.types.pop((*self._path, name), None)
            self._versions[name] = next(self._numbers.versions)
            for block in self._blocks:
                block.sets.add(name)

    def _forget(self, name: str) -> None:
        self._versions[name] = next(self._numbers.versions)

    @contextmanager
    def _inside(self, block: OpenBlock) -> Iterator[OpenBlock]:
        self._expect_open()
        self._blocks.append(block)
        yield block
        self._join_rest()
        self._blocks.pop()

    def _join_rest(self) -> None:
        for _, branches in list(self._blocks[-1].forks.values()):
            self.join(branches)

    def close(self) -> Block:
        """End this state: its nodes."""
        if not self._is_closed:
            self._expect_open()
            self._join_rest()
            self._is_closed = True
        return tuple(self._blocks[0].nodes)


class Branches:
    """The branches of one fork: indexed and iterated like a list."""

    def __init__(self, name: str, states: list[State]) -> None:
        self.name = name
        self._states = states

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[State]:
        return iter(self._states)

    def __getitem__(self, index: Any) -> State:
        if isinstance(index, Value):
            raise trace_error("a branch by a number that is known only at run time; index the list that s.join gives")
        found: State = self._states[index]
        return found

    def __setitem__(self, index: Any, state: State) -> None:
        """What `branches[0] += ...` ends with."""
        if state is not self[index]:
            raise trace_error("a branch cannot be replaced; say more with branches[...] += ...")


def _named(name: str) -> str:
    if not isinstance(name, str):
        raise trace_error(f"{type(name).__name__!r} is not a name for a variable; use a text that is known now")
    if not name.isidentifier() or not name.isascii() or len(name) > 64:
        raise trace_error(f"{name!r} is not a name for a variable; use letters, digits and _")
    return name

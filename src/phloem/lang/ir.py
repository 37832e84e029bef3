"""The IR: a program as an immutable tree of nodes, JSON in and out. Version 1.

A block is a tuple of nodes, run in order on one *state*: the tokens said so far, and the variables. Text, Gen and
Select append to the state. Fork and Map run blocks on copies of it; what those set comes back with Join, as records in
one variable. Control flow is nodes, and loops are bounded, so no program can run for ever. `site` numbers a node within
its program for good: passes keep it, and the seed of a generation follows from it, never from the order of execution.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from phloem.lang.errors import ProgramError
from phloem.lang.expr import AnyExpr

VERSION = 1

Role = Literal["system", "user", "assistant"]
Parse = Literal["text", "json", "integer", "number", "boolean"]
Method = Literal["token_length_normalized", "greedy_token", "unconditional_normalized"]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class Node(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", forbid_unknown_fields=True, omit_defaults=True):
    """`at` is the author's file and line, for messages."""

    site: int = 0
    at: str = ""


class Text(Node, frozen=True, kw_only=True, tag="text"):
    """Append a text; one node is tokenized on its own, once. `commutable`: the author does not mind in which order this
    and its commutable neighbours come."""

    value: AnyExpr
    commutable: bool = False


class Gen(Node, frozen=True, kw_only=True, tag="gen"):
    """Let the model go on, and keep what it says as variable `name`. At most one of `regex`, `json_schema`, `choices`
    and `grammar` (Lark) constrains it."""

    name: Name
    max_tokens: Count = 128
    stop: tuple[str, ...] = ()
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    regex: str | None = None
    json_schema: dict[str, Any] | None = None
    choices: tuple[str, ...] | None = None
    grammar: str | None = None
    parse: Parse = "text"


class Select(Node, frozen=True, kw_only=True, tag="select"):
    """Append the one of `choices` (a list of texts) that the model finds likeliest."""

    name: Name
    choices: AnyExpr
    method: Method = "token_length_normalized"


class Turn(Node, frozen=True, kw_only=True, tag="turn"):
    """A turn of a conversation, spelled as the model's chat template does."""

    role: Role
    body: tuple[AnyNode, ...]


class Fork(Node, frozen=True, kw_only=True, tag="fork"):
    """Start a copy of the state for each branch. `prefix` is said once, by all of them, before they part. With
    `parallel` they run at once, and the state itself goes on until Join."""

    name: Name
    branches: tuple[tuple[AnyNode, ...], ...]
    prefix: tuple[AnyNode, ...] = ()
    parallel: bool = False


class Map(Node, frozen=True, kw_only=True, tag="map"):
    """A Fork with one branch an item of a list that is known at run time."""

    name: Name
    items: AnyExpr
    item: Name
    body: tuple[AnyNode, ...]
    prefix: tuple[AnyNode, ...] = ()
    parallel: bool = False


class Join(Node, frozen=True, kw_only=True, tag="join"):
    """Wait for a Fork or Map; its variable becomes a list of records, one a branch. With `append` what the branches
    said is appended here, one after the other, token for token."""

    fork: Name
    append: bool = False


class If(Node, frozen=True, kw_only=True, tag="if"):
    """One of two blocks."""

    condition: AnyExpr
    then: tuple[AnyNode, ...]
    orelse: tuple[AnyNode, ...] = ()


class While(Node, frozen=True, kw_only=True, tag="while"):
    """A block as long as the condition holds, at most `max_iterations` times."""

    condition: AnyExpr
    max_iterations: Count
    body: tuple[AnyNode, ...]


class Call(Node, frozen=True, kw_only=True, tag="call"):
    """A pure function that the operator registered under `function`."""

    name: Name
    function: str
    args: tuple[AnyExpr, ...] = ()


class SetVar(Node, frozen=True, kw_only=True, tag="set"):
    """A variable gets a value."""

    name: Name
    value: AnyExpr


AnyNode = Text | Gen | Select | Turn | Fork | Map | Join | If | While | Call | SetVar
Block = tuple[AnyNode, ...]


class Parameter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a caller gives. Without `required` a missing argument is `default`."""

    name: Name
    required: bool = True
    default: Any = None


class Program(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A program. `outputs` are the variables a caller wants; None wants them all, and what was said. `order` says whose
    requests go first when not all branches can run at once: those that came first, or those of the first branch with
    all that is inside it."""

    version: int
    name: Name
    parameters: tuple[Parameter, ...] = ()
    body: Block = ()
    outputs: tuple[Name, ...] | None = None
    order: Literal["breadth_first", "depth_first"] = "breadth_first"


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Program)


def to_json(program: Program) -> bytes:
    """The program as JSON."""
    return _encoder.encode(program)


def from_json(data: bytes | str) -> Program:
    """A program from JSON: its shape only; `verify` judges the rest. ProgramError names the place."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:  # ValidationError is one of them
        raise shape_error(str(error)) from error
    except (RecursionError, UnicodeDecodeError) as error:
        raise ProgramError(f"program: {error}", field="program") from error


def shape_error(message: str) -> ProgramError:
    """msgspec's words, with the place in front."""
    reason, _, path = message.partition(" - at `$")
    place = "program" + path.removesuffix("`").replace("[...]", "[]")
    return ProgramError(f"{place}: {reason}", field=place)


def decode(value: Any) -> Program:
    """A program from parsed JSON. ProgramError names the place."""
    try:
        return msgspec.convert(value, Program)
    except msgspec.ValidationError as error:
        raise shape_error(str(error)) from error
    except RecursionError as error:
        raise ProgramError("program: nested too deeply", field="program") from error

"""The IR: JSON there and back, its published schema, and what the verifier refuses, with the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from phloem import LimitExceeded, ProgramError, ProgramLimits
from phloem.lang import ir
from phloem.lang.expr import Compare, Const, Format, Item, Var, evaluate
from phloem.lang.schema import program_schema
from phloem.lang.verify import numbered, verify

PUBLISHED = Path(__file__).parents[2] / "docs" / "program.schema.json"


def const(value: Any) -> dict[str, Any]:
    return {"op": "const", "value": value}


def text(value: str = "a") -> dict[str, Any]:
    return {"op": "text", "value": const(value)}


def var(name: str) -> dict[str, Any]:
    return {"op": "var", "name": name}


def program(*body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"version": 1, "name": "p", "body": list(body), **fields}


def check(*body: dict[str, Any], limits: ProgramLimits | None = None, **fields: Any) -> None:
    made = ir.from_json(json.dumps(program(*body, **fields)))
    verify(numbered(made), limits=limits, functions={"strip"})


GEN = {"op": "gen", "name": "g"}
FORK = {"op": "fork", "name": "f", "branches": [[text()]]}


def test_json_there_and_back() -> None:
    """Red when a field is not encoded, or is decoded as something else."""
    made = ir.Program(
        version=1,
        name="p",
        parameters=(ir.Parameter(name="x", required=False, default=[1]),),
        body=(
            ir.Turn(
                site=1,
                at="a.py:1",
                role="user",
                body=(ir.Text(site=2, value=Format((Const("a"), Item(Var("x"), Const(0))))),),
            ),
            ir.If(
                site=3, condition=Compare(Var("x"), "in", Const([1])), then=(ir.Gen(site=4, name="g", stop=("\n",)),)
            ),
        ),
        outputs=("x",),
    )
    assert ir.from_json(ir.to_json(made)) == made


def test_the_published_schema_is_current_and_describes_the_json() -> None:
    """Red when the IR changes and docs/program.schema.json does not (write program_schema() there), or when a program's
    JSON does not match it."""
    schema = program_schema()
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == schema
    jsonschema.validate(program(text(), GEN, FORK, {"op": "join", "fork": "f"}), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(program({"op": "gen"}), schema)


@pytest.mark.parametrize(
    ("body", "place", "says"),
    [
        ([{"op": "image"}], "program.body[0].op", "image"),
        ([{"op": "gen"}], "program.body[0]", "name"),
        ([{"op": "gen", "name": "1"}], "program.body[0].name", ""),
        ([{"op": "gen", "name": "g", "max_tokens": 0}], "program.body[0].max_tokens", ""),
        ([{"op": "gen", "name": "g", "surprise": 1}], "program.body[0]", "surprise"),
        ([{"op": "text", "value": var("x")}], "program.body[0]", "'x' has no value"),
        ([{"op": "if", "condition": const(True), "then": [GEN]}, {"op": "text", "value": var("g")}],
         "program.body[1]", "'g'"),
        ([{"op": "while", "condition": var("n"), "max_iterations": 3, "body": []}], "program.body[0]", "'n'"),
        ([{"op": "while", "condition": const(True), "max_iterations": 1000000, "body": []}],
         "program.body[0].max_iterations", "1000000"),
        ([FORK], "program.body[0]", "never joined"),
        ([FORK, FORK], "program.body[1]", "open already"),
        ([FORK, {"op": "if", "condition": const(True), "then": [FORK, {"op": "join", "fork": "f"}]},
          {"op": "join", "fork": "f"}], "program.body[1].then[0]", "open already"),
        ([FORK, {"op": "text", "value": var("f")}, {"op": "join", "fork": "f"}], "program.body[1]", "not joined yet"),
        ([{"op": "join", "fork": "f"}], "program.body[0]", "no open fork"),
        ([{"op": "fork", "name": "f", "branches": []}, {"op": "join", "fork": "f"}],
         "program.body[0].branches", "at least one"),
        ([{"op": "fork", "name": "f", "branches": [[]] * 99}, {"op": "join", "fork": "f"}],
         "program.body[0].branches", "99"),
        ([{"op": "turn", "role": "user", "body": [{"op": "turn", "role": "user", "body": []}]}],
         "program.body[0].body[0]", "inside a turn"),
        ([{"op": "turn", "role": "robot", "body": []}], "program.body[0].role", "robot"),
        ([{"op": "turn", "role": "user", "body": []}, text()], "program.body[1]", "inside one"),
        ([{"op": "gen", "name": "g", "regex": "a", "choices": ["a"]}], "program.body[0].choices", "one constraint"),
        ([{"op": "gen", "name": "g", "choices": []}], "program.body[0].choices", "at least one"),
        ([{"op": "gen", "name": "g", "stop": [""]}], "program.body[0].stop", "none empty"),
        ([{"op": "select", "name": "g", "choices": const("a")}], "program.body[0].choices", "list of texts"),
        ([{"op": "call", "name": "g", "function": "eval"}], "program.body[0].function", "eval"),
        ([{"op": "text", "value": {"op": "logic", "how": "not", "args": []}}], "program.body[0]", "0 arguments"),
        ([{**text(), "site": 1}, {**text(), "site": 1}], "program", "same site"),
    ],
)  # fmt: skip
def test_a_malformed_program_is_refused_at_its_place(body: list[dict[str, Any]], place: str, says: str) -> None:
    """Red when something wrong gets through, or the error does not name where it is."""
    with pytest.raises(ProgramError, match="program") as caught:
        check(*body)
    assert caught.value.message.startswith(place)
    assert says in caught.value.message
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("limits", "body"),
    [
        (ProgramLimits(max_nodes=5), [text()] * 3),
        (ProgramLimits(max_depth=2), [{"op": "if", "condition": const(1), "then": [
            {"op": "if", "condition": const(1), "then": [text()]}]}]),
        (ProgramLimits(max_value_chars=3), [text("abcd")]),
    ],
)  # fmt: skip
def test_static_limits(limits: ProgramLimits, body: list[dict[str, Any]]) -> None:
    """Red when a program larger than allowed is verified as far as its end."""
    with pytest.raises(LimitExceeded, match=r"program\.body"):
        check(*body, limits=limits)


def test_what_is_nested_very_deep_is_an_error_not_a_crash() -> None:
    """Red when recursion reaches Python's limit, or the parser's."""
    nested: dict[str, Any] = text()
    for _ in range(100):
        nested = {"op": "if", "condition": const(True), "then": [nested]}
    with pytest.raises(ProgramError):
        check(nested)
    deep = '{"op":"logic","how":"not","args":[' * 5000 + '{"op":"const","value":1}' + "]}" * 5000
    body = '{"version":1,"name":"p","body":[{"op":"text","value":' + deep + "}]}"
    with pytest.raises(ProgramError):
        ir.from_json(body)
    with pytest.raises(ProgramError):
        ir.from_json(b"\xff")


def test_a_version_of_the_future_is_refused() -> None:
    """Red when a program of another version is run as if it were of this one."""
    with pytest.raises(ProgramError, match=r"program\.version"):
        verify(ir.from_json(json.dumps({**program(), "version": 2})))


@pytest.mark.parametrize(
    ("expr", "says"),
    [
        ({"op": "item", "of": const([1]), "key": const(4)}, "no item 4"),
        ({"op": "item", "of": const({}), "key": const("a")}, "no item"),
        ({"op": "compare", "left": const(1), "how": "<", "right": const("a")}, "a number < a text"),
        ({"op": "compare", "left": const(1), "how": "starts with", "right": const("a")}, "cannot ask"),
        ({"op": "compute", "left": const(1), "how": "+", "right": const("a")}, "cannot compute"),
        ({"op": "compute", "left": const("a"), "how": "*", "right": const(9)}, "cannot compute"),
        ({"op": "compute", "left": const(1 << 52), "how": "*", "right": const(8)}, "beyond"),
        ({"op": "format", "parts": [const("a" * 60)] * 3}, "more than 100 characters"),
    ],
)
def test_expressions_fail_with_words(expr: dict[str, Any], says: str) -> None:
    """Red when an expression raises what Python raises, or makes a value without bound."""
    [node] = ir.decode(program({"op": "set", "name": "x", "value": expr})).body
    assert isinstance(node, ir.SetVar)
    with pytest.raises(ProgramError, match=says):
        evaluate(node.value, {}, place="here", max_chars=100)

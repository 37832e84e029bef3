"""Fields that constrain an answer: every spelling, conflicts, and refusals that name the field."""

from __future__ import annotations

import json

import msgspec
import pytest

from phloem.core.errors import InvalidRequest
from phloem.core.request import Constraint, SamplingParams
from phloem.serve.openai.constraints import MAX_CONSTRAINT_BYTES, constrained, constraint_field, read_constraint
from phloem.serve.openai.requests import ConstraintFields

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
AS_TEXT = msgspec.json.encode(SCHEMA).decode()


def read(**fields):
    return read_constraint(msgspec.convert(fields, ConstraintFields))


def wrapped(**entry):
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, **entry}}


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"response_format": {"type": "json_object"}}, Constraint("json_object")),
        ({"response_format": wrapped()}, Constraint("json_schema", AS_TEXT)),
        ({"response_format": wrapped(strict=True)}, Constraint("json_schema", AS_TEXT)),
        ({"guided_json": SCHEMA}, Constraint("json_schema", AS_TEXT)),
        ({"guided_json": AS_TEXT}, Constraint("json_schema", AS_TEXT)),
        ({"guided_regex": "a+"}, Constraint("regex", "a+")),
        ({"guided_choice": ["a", 'b"']}, Constraint("choice", '["a","b\\""]')),
        ({"guided_grammar": 'start: "x"'}, Constraint("grammar", 'start: "x"')),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint("json_schema", AS_TEXT)),
        ({"structured_outputs": {"regex": "a+", "json": None}}, Constraint("regex", "a+")),
        ({"structured_outputs": {"choice": ["a"]}}, Constraint("choice", '["a"]')),
        ({"structured_outputs": {"grammar": 'start: "x"'}}, Constraint("grammar", 'start: "x"')),
        ({"structured_outputs": {"json_object": True}}, Constraint("json_object")),
        ({"json_schema": AS_TEXT}, Constraint("json_schema", AS_TEXT)),
        ({"regex": "a+"}, Constraint("regex", "a+")),
        ({"ebnf": 'root ::= "x"'}, Constraint("grammar", 'root ::= "x"')),
    ],
    ids=lambda value: str(value)[:50],
)
def test_every_spelling(fields, constraint):
    """Red when a field is read as another kind, its schema's keys are reordered, or the field is not remembered."""
    named = read(**fields)
    assert named.constraint == constraint
    assert [named.field] == list(fields)
    with_text = {"response_format": {"type": "text"}, **fields}
    assert constraint_field(msgspec.convert(with_text, ConstraintFields)) == named.field


@pytest.mark.parametrize(
    "fields",
    [{}, {"response_format": {"type": "text"}}, {"response_format": {"type": "text"}, "guided_json": None}],
    ids=str,
)
def test_no_constraint(fields):
    """Red when a text answer is constrained."""
    assert read(**fields) is None


def test_lenient_schemas_say_so_and_callers_cannot():
    """Red when `strict: false` is not passed on, or a caller can set the grammar library's options in a schema."""
    lenient = json.loads(read(response_format=wrapped(strict=False)).constraint.text)
    assert lenient["x-guidance"] == {"lenient": True}
    smuggled = {**SCHEMA, "x-guidance": {"lenient": True, "whitespace_pattern": ".*"}}
    assert read(guided_json=smuggled).constraint.text == AS_TEXT
    assert read(response_format={"type": "text"}, regex="a").constraint == Constraint("regex", "a")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"response_format": {}}, "response_format"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": wrapped(schema=[])}, "response_format"),
        ({"response_format": wrapped(strict="yes")}, "response_format"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "3"}, "guided_json"),
        ({"json_schema": "[" * 100_000}, "json_schema"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [""]}, "guided_choice"),
        ({"regex": ""}, "regex"),
        ({"ebnf": ""}, "ebnf"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs"),
        ({"structured_outputs": {"whitespace_pattern": "x", "regex": "a"}}, "structured_outputs"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_regex": "a", "regex": "a"}, "regex"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_refusals_name_the_field(fields, field):
    """Red when a malformed or a second constraint is taken, or the error names no field."""
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    assert caught.value.field == field
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("sampling", "constraint", "field"),
    [
        (SamplingParams(min_tokens=1), Constraint("regex", "a"), "min_tokens"),
        (SamplingParams(ignore_eos=True), Constraint("regex", "a"), "ignore_eos"),
        (SamplingParams(), Constraint("regex", "a" * (MAX_CONSTRAINT_BYTES + 1)), "regex"),
        (SamplingParams(), Constraint("regex", "é" * (MAX_CONSTRAINT_BYTES // 2 + 1)), "regex"),
        (SamplingParams(), Constraint("wish", "a"), "regex"),
        (SamplingParams(), Constraint("regex", None), "regex"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_contradictions_are_refused(sampling, constraint, field):
    """Red when a request could ask for tokens after its grammar's end, or for a grammar of any size."""
    with pytest.raises(InvalidRequest) as caught:
        constrained(sampling, constraint, field="regex")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
async def test_a_constraint_is_tried_before_the_engine_hears_of_it(serve, constraints, path, body):
    """Red when an endpoint forgets the trial, or the constraint does not reach the engine."""
    server = serve(says=["a"])
    assert (await server.post(path, **body, guided_regex="refused")).json()["error"]["param"] == "guided_regex"
    assert server.submits == []
    assert (await server.post(path, **body, guided_regex="a+")).status_code == 200
    assert constraints.seen[-1] == (Constraint("regex", "a+"), "guided_regex")
    assert [submit.sampling.constraint for submit in server.submits] == [Constraint("regex", "a+")]

"""Constrained answers from the default model, offline, and from a whole server that hostile constraints meet."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import jsonschema
import pytest

from phloem import LLM, Constraint, InvalidRequest, RequestFailed, SamplingParams

if TYPE_CHECKING:
    from tests.launch.conftest import ServerProcess

TEXT = {"type": "string", "maxLength": 24}
INTEGER, BOOLEAN = {"type": "integer"}, {"type": "boolean"}


def closed(**properties) -> dict:
    """An object with just these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array(items, *, most: int) -> dict:
    return {"type": "array", "items": items, "maxItems": most}


TREE = {
    "type": "object",
    "properties": {"name": TEXT, "children": array({"$ref": "#/$defs/tree"}, most=1)},
    "required": ["name"],
    "additionalProperties": False,
}
SCHEMAS = {
    "person": closed(name=TEXT, age={"type": "integer", "minimum": 0, "maximum": 120}, is_member=BOOLEAN),
    "optional": {"type": "object", "properties": {"a": INTEGER, "b": TEXT}, "additionalProperties": False},
    "array": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 5},
    "tuple": {"type": "array", "prefixItems": [TEXT, {"type": "number"}], "items": False, "minItems": 2},
    "union": {"anyOf": [{"type": "null"}, INTEGER, closed(x={"const": 1})]},
    "nested": closed(items=array(closed(id=INTEGER, tag=TEXT), most=2)),
    "pattern": closed(code={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2}$"}),
    "formats": closed(day={"type": "string", "format": "date"}, id={"type": "string", "format": "uuid"}),
    "recursive": {"$ref": "#/$defs/tree", "$defs": {"tree": TREE}},
    "numbers": closed(
        low={"type": "number", "exclusiveMinimum": 0, "maximum": 1}, steps={"type": "integer", "multipleOf": 5}
    ),
    "map": {"type": "object", "additionalProperties": BOOLEAN, "maxProperties": 2},
}
PROMPT = "Question: describe something, as JSON.\nAnswer:"


def of_schema(schema) -> Constraint:
    return Constraint("json_schema", json.dumps(schema))


@pytest.fixture(scope="module", params=["0", "1"])
def llm(request, default_model) -> Iterator[LLM]:
    with LLM(default_model, overlap=request.param, memory_gb=0.5, max_step_tokens=64) as made:
        yield made


@pytest.fixture(scope="module")
def server(start_server: type[ServerProcess]) -> Iterator[ServerProcess]:
    started = start_server()
    yield started
    started.close()


def test_everything_generated_under_a_schema_is_valid(llm):
    """Red when an answer that was not cut does not validate, or forced tokens change an answer."""
    constraints = [of_schema(schema) for schema in SCHEMAS.values() for _ in range(3)]
    schemas = [schema for schema in SCHEMAS.values() for _ in range(3)]
    params = [
        SamplingParams(constraint=constraint, max_tokens=160, temperature=index % 3 / 2, seed=index)
        for index, constraint in enumerate(constraints)
    ]
    outputs = llm.generate([PROMPT] * len(params), params, progress=False)
    num_whole = 0
    for schema, output in zip(schemas, outputs):
        if output.outputs[0].finish_reason == "stop":
            num_whole += 1
            jsonschema.validate(json.loads(output.text), schema, format_checker=jsonschema.FormatChecker())
    assert num_whole > 0.7 * len(outputs)
    one_by_one = [SamplingParams(**{**_fields(each), "logprobs": 0}) for each in params[:6]]
    unforced = llm.generate([PROMPT] * 6, one_by_one, progress=False)
    assert [each.outputs[0].token_ids for each in unforced] == [each.outputs[0].token_ids for each in outputs[:6]]


def _fields(params: SamplingParams) -> dict:
    return {name: getattr(params, name) for name in params.__struct_fields__}


def test_log_probabilities_and_choices_of_a_constrained_text(llm):
    """Red when a constrained row's log-probabilities are not one a token, or its choices are not drawn separately."""
    constraint = Constraint("regex", "[a-z]{6}")
    params = SamplingParams(constraint=constraint, n=3, logprobs=2, temperature=1.5, seed=5, max_tokens=20)
    [output] = llm.generate("Six letters: ", params, progress=False)
    for choice in output.outputs:
        assert re.fullmatch("[a-z]{6}", choice.text)
        assert [entry.token_id for entry in choice.logprobs] == list(choice.token_ids)
    assert len({choice.text for choice in output.outputs}) > 1


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint("choice", '["positive", "negative", "Ünsure\\n\\"?"]'), r'positive|negative|Ünsure\n"\?'),
        (Constraint("regex", r"\d{4}-\d{2}-\d{2}"), r"\d{4}-\d{2}-\d{2}"),
        (
            Constraint("grammar", 'start: "SELECT " /[a-z]{1,5}/ (" FROM " | " OF ") "us"'),
            "SELECT [a-z]{1,5} (FROM|OF) us",
        ),
        (Constraint("grammar", 'root ::= ("a" | "b")+ "!"'), "[ab]+!"),
        (Constraint("json_object"), r"(?s)\{.*\}"),
    ],
    ids=lambda value: value.kind if isinstance(value, Constraint) else "",
)
def test_every_kind(llm, constraint, pattern):
    """Red when a kind of constraint is not followed."""
    params = SamplingParams(constraint=constraint, max_tokens=60, seed=1, logit_bias={17: 2.0}, repetition_penalty=1.1)
    [output] = llm.generate(PROMPT, params, progress=False)
    assert output.outputs[0].finish_reason == "length" or re.fullmatch(pattern, output.text)


def test_a_bias_chooses_among_what_the_constraint_allows(llm):
    """Red when a bias lets a forbidden token through, or the constraint makes it ineffective."""
    yes, no, other = (llm._text.tokenizer.encode(text)[0] for text in ("yes", "no", "zebra"))
    constraint = Constraint("choice", '["yes", "no"]')
    for wanted, text in ((yes, "yes"), (no, "no")):
        params = SamplingParams(constraint=constraint, max_tokens=9, seed=1, logit_bias={wanted: 60.0, other: 100.0})
        assert llm.generate(PROMPT, params, progress=False)[0].text == text


def test_a_cached_prefix_changes_nothing(llm):
    """Red when a constrained answer depends on how much of its prompt was in the cache."""
    params = SamplingParams(constraint=of_schema(SCHEMAS["person"]), max_tokens=80, seed=3)
    prompt = "A long prompt, so that whole pages of it are shared. " * 12 + PROMPT
    first, again = (llm.generate(prompt, params, progress=False)[0] for _ in range(2))
    assert again.usage.cached_tokens > first.usage.cached_tokens
    assert again.outputs[0].token_ids == first.outputs[0].token_ids


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(constraint=Constraint("regex", "(")), "constraint"),
        (SamplingParams(constraint=Constraint("json_schema", '{"type": "wish"}')), "constraint"),
        (SamplingParams(constraint="a+"), "constraint"),
        (SamplingParams(constraint=Constraint("regex", "a"), min_tokens=3), "min_tokens"),
    ],
)
def test_offline_refusals_are_typed(llm, params, field):
    """Red when a bad constraint is an endless wait or another error than over HTTP."""
    with pytest.raises(InvalidRequest) as caught:
        llm.generate(PROMPT, params, progress=False)
    assert caught.value.field == field


def test_a_row_that_cannot_go_on_fails_alone(llm):
    """Red when a grammar that becomes too complex while it is followed ends anything but its own request."""
    hopeless = SamplingParams(constraint=Constraint("regex", "[0-9]{99}(a?){2000}a{2000}"), max_tokens=140)
    with pytest.raises(RequestFailed, match="constraint cannot be followed"):
        llm.generate(PROMPT, hopeless, progress=False)
    assert llm.generate(PROMPT, SamplingParams(max_tokens=2), progress=False)[0].text


WIDE = {"type": "object", "properties": {f"property_{index}": {"type": "integer"} for index in range(12_000)}}


def as_format(schema) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def tool(name: str, parameters: dict | None = None) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {"type": "object"}}}


HOSTILE = {
    "unknown type": ({"response_format": as_format({"type": "objct"})}, "response_format"),
    "unsupported": ({"guided_json": {"not": {"type": "null"}}}, "guided_json"),
    "contradictory": ({"guided_json": {"type": "integer", "minimum": 3, "maximum": 2}}, "guided_json"),
    "recursive for ever": ({"guided_json": {"$ref": "#"}}, "guided_json"),
    "two megabytes": ({"guided_json": {"enum": ["x" * 1000 + str(index) for index in range(2000)]}}, "guided_json"),
    "slow": ({"guided_json": WIDE}, "guided_json"),
    "deep": ({"json_schema": '{"items":' * 4000 + "true" + "}" * 4000}, "json_schema"),
    "regex": ({"guided_regex": "(a"}, "guided_regex"),
    "alternations": ({"regex": "|".join(f"(a|b|{index})*" for index in range(60_000))}, "regex"),
    "grammar": ({"ebnf": "root ::= nowhere"}, "ebnf"),
    "structured": ({"structured_outputs": {"grammar": "start: ("}}, "structured_outputs"),
    "two megabytes of regex": ({"regex": "(a|b)" * 400_000}, "regex"),
    "grammar of itself": ({"guided_grammar": "start: start"}, "guided_grammar"),
    "a name twice": ({"tools": [tool("f"), tool("g"), tool("f")]}, "tools[2].function.name"),
    "a thousand tools": ({"tools": [tool(f"f{number}") for number in range(1_000)]}, "tools"),
    "a control token as a name": ({"tools": [tool("<|im_end|>")]}, "tools[0].function.name"),
    "a tool that wants the impossible": (
        {"tools": [tool("f", {"type": "object", "properties": {"x": {"minimum": 2, "maximum": 1, "type": "integer"}},
                              "required": ["x"]})], "tool_choice": "required"}, "tools[0].function.parameters"),
    "a tool that is its own argument": (
        {"tools": [tool("f", {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]})],
         "tool_choice": "required"}, "tools[0].function.parameters"),
}  # fmt: skip


TAKE_TIME = ("slow", "a tool that is its own argument")
"""More than warden.QUICK_CPU_S."""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_constraints_get_a_400_and_the_server_goes_on(server, name):
    """Red when a hostile constraint hangs, crashes, or is answered with anything but a 400 that names its field."""
    body, field = HOSTILE[name]
    began_s = time.monotonic()
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **body}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=30)
    if name in TAKE_TIME and answer.status_code == 503:  # the machine that runs the tests is busy
        assert int(answer.headers["retry-after"]) > 0
        assert time.monotonic() - began_s < 8
        return
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text[:500]
    assert time.monotonic() - began_s < 20
    assert len(answer.json()["error"]["message"]) < 1_000
    if name == "slow":
        began_s = time.monotonic()
        assert httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=30).status_code == 400
        assert time.monotonic() - began_s < 1
    assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200


EXPLODING = "((a{1,100}){1,100}){1,100}b"
CATASTROPHIC = [EXPLODING, "(a+)+$", "(a|a)*b", "(a|aa)+c", "(.*)*x", "(x+x+)+y", r"^(\w+\s?)*$", "(a?){500}a{500}"]


@pytest.mark.parametrize("pattern", CATASTROPHIC)
def test_expressions_that_are_catastrophic_elsewhere_are_not_here(server, pattern):
    """Red when an expression that sends a backtracking engine into exponential time delays an answer, or others."""
    began_s = time.monotonic()
    body = {"prompt": "a", "max_tokens": 30, "guided_regex": pattern}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)
    assert answer.status_code in (200, 400), answer.text
    assert time.monotonic() - began_s < 10
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] == "guided_regex"
    assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200


def slow_schema(name: str) -> dict:
    return {"type": "object", "properties": {f"{name}_{index}": {"type": "integer"} for index in range(11_000)}}


def test_a_client_that_leaves_while_its_schema_is_tried(start_server):
    """Red when its place in the server is never given back, or the verdict of a trial that nobody waits for any more
    ends anything."""
    small = start_server("--max-queue", "3")
    honest = {"prompt": "a", "max_tokens": 4, "regex": "honest"}
    httpx.post(f"{small.url}/v1/completions", json=honest, timeout=30).raise_for_status()
    for number in range(3):
        body = {"prompt": "a", "guided_json": slow_schema(f"left{number}")}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{small.url}/v1/completions", json=body, timeout=httpx.Timeout(10, read=0.02))
    time.sleep(0.5)
    answers = [httpx.post(f"{small.url}/v1/completions", json=honest, timeout=30) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    small.close()


def test_a_server_drains_while_a_schema_is_tried(start_server):
    """Red when a trial under way keeps a server from stopping, or its client gets no answer."""
    draining = start_server("--drain-timeout-s", "1")
    statuses: list[int] = []

    def ask() -> None:
        body = {"prompt": "a", "guided_json": slow_schema("drained")}
        statuses.append(httpx.post(f"{draining.url}/v1/completions", json=body, timeout=30).status_code)

    with ThreadPoolExecutor(1) as pool:
        httpx.post(f"{draining.url}/v1/completions", json={"prompt": "a", "regex": "warm"}, timeout=30)
        asked = pool.submit(ask)
        time.sleep(0.15)
        draining.process.terminate()
        assert draining.process.wait(20) == 0
        asked.exception(10)
    assert not statuses or statuses[0] in (400, 499, 503)


def test_a_server_answers_in_json(server):
    """Red when a constraint is lost between the HTTP body and the worker's masks, streamed or not, alone or among
    others."""
    client = server.client()
    schema = SCHEMAS["person"]
    fmt = as_format(schema)

    def ask(seed: int) -> str:
        stream = client.chat.completions.create(
            model="dummy:null", messages=[{"role": "user", "content": "who?"}], max_tokens=400, seed=seed,
            response_format=fmt, stream=True,
        )  # fmt: skip
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(8)))
    for answer in answers:
        jsonschema.validate(json.loads(answer), schema)
    assert len(set(answers)) > 1
    completion = client.completions.create(
        model="dummy:null", prompt="x", max_tokens=9, extra_body={"guided_choice": ["yes", "no"]}
    )
    assert completion.choices[0].text in ("yes", "no")
    assert completion.choices[0].finish_reason == "stop"


def test_a_stop_string_among_forced_tokens(llm):
    """Red when tokens behind a stop string are counted or kept because a constraint brought them in one result."""
    constraint = Constraint("regex", "one two three four five six")
    [whole] = llm.generate("Count: ", SamplingParams(constraint=constraint, max_tokens=40), progress=False)
    for logprobs in (None, 0):
        params = SamplingParams(constraint=constraint, max_tokens=40, stop=("three",), logprobs=logprobs)
        [output] = llm.generate("Count: ", params, progress=False)
        assert output.text == "one two "
        assert output.outputs[0].stop_reason == "three"
        assert output.outputs[0].token_ids == whole.outputs[0].token_ids[: len(output.outputs[0].token_ids)]
        assert output.usage.completion_tokens == len(output.outputs[0].token_ids) < len(whole.outputs[0].token_ids) - 2

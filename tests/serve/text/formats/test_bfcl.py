"""The Berkeley function-calling leaderboard's expected calls, rendered, constrained and read back in every format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phloem.serve.text.formats.choose import TOOL_FORMATS
from phloem.serve.text.formats.parser import Arguments, CallStart, OutputParser
from phloem.serve.text.formats.render import render_calls
from phloem.serve.text.formats.spec import Call, ToolFormat

FOLDER = Path(__file__).parents[5] / "shared" / "data" / "bfcl"
KINDS = ("simple_python", "multiple", "parallel", "parallel_multiple")

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no BFCL data beside the repository")


def cases() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The calls of each case: every argument's first accepted value; those that may be left out are left out."""
    for kind in KINDS:
        for line in (FOLDER / f"answer_BFCL_v4_{kind}.json").read_text(encoding="utf-8").splitlines():
            calls = [next(iter(call.items())) for call in json.loads(line)["ground_truth"]]
            yield [
                (name, {key: first(values) for key, values in arguments.items() if first(values) != ""})
                for name, arguments in calls
            ]


def first(values: Any) -> Any:
    """Accepted values are lists, objects in them as well."""
    value = values[0] if isinstance(values, list) and values else values
    return {key: first(inner) for key, inner in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("format", TOOL_FORMATS, ids=lambda format: format.name)
def test_expected_calls_survive_a_round_trip(format: ToolFormat) -> None:
    """Red when a real name or value is changed by rendering or reading, or calls run into each other."""
    num_cases = 0
    for calls in cases():
        text = render_calls(format, [Call(name, json.dumps(arguments)) for name, arguments in calls])
        strings = [(name, {key for key, value in given.items() if isinstance(value, str)}) for name, given in calls]
        texts = {
            name: frozenset().union(*(keys for other, keys in strings if other == name)) for name, _ in strings
        }  # what their schemas would say
        parser = OutputParser(tools=format, reasoning=None, names=frozenset(texts), texts=texts)
        half = len(text) // 2
        events = [*parser.feed(text[:half]), *parser.feed(text[half:]), *parser.finish()]
        read = [
            (
                start.name,
                json.loads("".join(e.text for e in events if isinstance(e, Arguments) and e.index == start.index)),
            )
            for start in events
            if isinstance(start, CallStart)
        ]
        assert read == calls
        assert all(isinstance(event, CallStart | Arguments) for event in events)
        num_cases += 1
    assert num_cases > 900

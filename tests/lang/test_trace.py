"""What an author writes becomes the IR, or an error that names the line: never one side of a decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from phloem import TraceError
from phloem.lang.show import show_text

Author = Callable[[str], Any]


def body(source: str) -> str:
    lines = "\n".join("    " + line for line in source.strip("\n").split("\n"))
    return f"@program\ndef p(s, x, *, k=2):\n{lines}\n"


def test_a_program_becomes_nodes(author: Author) -> None:
    """Red when a word of the language is traced to something else."""
    made = author(
        body(
            """
s += system("Be brief.")
with s.user():
    s += f"Say {x} {k} times."
with s.assistant():
    branches = s.fork(k, name="ideas")
    for number, b in enumerate(branches):
        b += f"{number}: " + gen("idea", max_tokens=5, stop=".")
    s.join(branches)
    s += branches[0]["idea"] + select("pick", ["a", "b"], method="greedy_token")
    with s.If(s["pick"] == "a"):
        s["n"] = 1
    with s.Else():
        s["n"] = 2
    with s.While(s["n"] < 5, max_iterations=9):
        s["n"] = s["n"] + 1
    with s.Map(s.call("lines", s["pick"], name="lines"), item="line", name="notes") as m:
        m += m["line"] + gen("note")
return s["notes"], s["n"]
"""
        )
    )
    assert (
        show_text(made.given(k=2).trace())
        == """program p(x) -> notes, n
    system:
        text "Be brief."
    user:
        text f"Say {x} 2 times."
    assistant:
        ideas = fork of 2:
            branches[0]:
                text "0: "
                idea = gen(max_tokens=5, stop=["."])
            branches[1]:
                text "1: "
                idea = gen(max_tokens=5, stop=["."])
        join ideas
        text ideas[0]["idea"]
        pick = select(["a", "b"], method=greedy_token)
        if (pick == "a"):
            n = 1
        else:
            n = 2
        while (n < 5), at most 9 times:
            n = (n + 1)
        lines = lines(pick)
        notes = map line over lines:
            body:
                text line
                note = gen()
        join notes"""
    )


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("if x: s += 'a'", r"`with s.If"),
        ("if x == 'a': s += 'a'", r"`with s.If"),
        ("s += 'a' if x else 'b'", r"`with s.If"),
        ("while x: s += 'a'", r"`with s.While"),
        ("for y in x: s += y", r"`with s.Map"),
        ("s += 'a' * len(x)", r'`s.call\("length"'),
        ("assert x", r"`with s.If"),
        ("y = x and 'b'", r"&"),
        ("y = 'a' in x", r"\.contains"),
        ("y = x in ['a', 'b']", r"`with s.If"),
        ("y = {x: 1}", r"key of a dict"),
        ("y = int(x)", r"type=int"),
        ("y = [1, 2][x]", r"known now"),
        ("y = range(x)", r"known now"),
        ("s.fork(x)", r"s\.Map"),
        ("y = str(x)", r"f-string"),
        ("y = '%s' % x", r"f-string"),
        ("y = '{}'.format(x)", r"f-string"),
        ("y = x.upper()", r"s\.call"),
        ("y = x[1:2]", r"s\.call"),
        ("y = f'{x:>5}'", r"s\.call"),
        ("y = f'{x!r}'", r"s\.call"),
        ("if f'a{x}' == 'ab': s += 'c'", r"`with s.If"),
        ("y = x is None", r"`is`"),
        ("y = isinstance(x, str)", r"`isinstance`"),
        ("match x:\n    case str(): s += 'a'", r"`match`"),
        ("try:\n    s += 'a'\nexcept Exception: pass", r"`try`"),
        ("with s.If(x):\n    return", r"`return` inside"),
        ("for i in [1]:\n    with s.If(x):\n        break", r"`break` inside"),
        ("y = 'a'\nwith s.If(x):\n    y = 'b'\ns += y", r"s\[\"y\"\] = "),
        ("n = 0\nwith s.While(x, max_iterations=2):\n    n += 1", r"\+="),
        ("with s.Else():\n    s += 'a'", r"directly after"),
        ("with s.If(x):\n    s += 'a'\ns += 'b'\nwith s.Else():\n    s += 'c'", r"directly after"),
        ("s['a'] = 1\ny = s['a']\ns['a'] = 2\ns += y", r"set again"),
        ("s['a'] = 1\ny = s['a']\nwith s.While(x, max_iterations=2):\n    s += y\n    s['a'] = 2", r"before the loop"),
        ("b = s.fork(1)[0]\nb += gen('v')\ns += b['v']", r"join it first"),
        ("bs = s.fork(1)\ns.join(bs)\nbs[0] += 'a'", r"joined already|item assignment"),
        ("bs = s.fork(1)\nb = bs[0]\nwith s.If(x):\n    b += 'a'", r"in the block where it was forked"),
        ("bs = s.fork(1)\ns.join(bs)\ns.join(bs)", r"joined already"),
        ("s += image('a.png')", r"text only"),
        ("s += 5", r"cannot be appended"),
        ("s += gen('a', regex='a', type=int)", r"not both"),
        ("s += gen('a b')", r"name"),
        ("s += gen('a', max_tokens=0)", r"max_tokens"),
        ("s['a'] = object()", r"cannot be in a program"),
        ("s += undefined", r"NameError"),
        ("s += None.x", r"AttributeError"),
        ("s['a b'] = 1", r"not a name"),
        ("return s['nothing']", r"no value here"),
        ("s += f'{[x]}'", r"one f-string for each"),
        ("y = x.__class__", r"`__class__`"),
        ("y = isinstance\nz = y(x, str)", r"under another name"),
        ("y = hasattr(x, 'a')", r"`hasattr`"),
        ("for y in s: pass", r"no list of its variables"),
        ("y = 'a' in s", r"whether a variable has a value"),
        ("y = s[0]", r"not a name for a variable"),
        ("s += f'{s}'", r"read a variable"),
        ("s += f\"{gen('a')}\"", r"append it"),
        ("s['v'] = float('nan')", r"JSON has no such number"),
        ("with s.If(x):\n    assert 1 > 2", r"AssertionError"),
        ("with s.Map(['a'], name='n') as m:\n    m['v'] = 1\ns += f\"{m['v']}\"", r's\["n"\]\[0\]\["v"\]'),
    ],
)  # fmt: skip
def test_what_cannot_be_captured_names_the_line(author: Author, source: str, says: str) -> None:
    """Red when a construct is traced to one side, or its error does not say where and what to write instead."""
    made = author(body(source))
    with pytest.raises(TraceError, match=says) as caught:
        made.trace()
    assert "author.py:" in str(caught.value)


def test_python_runs_on_what_is_known_now(author: Author) -> None:
    """Red when keyword-only arguments are not known while tracing, or two tracings share them."""
    made = author(body("for i in range(k):\n    if i % 2 == 0:\n        s += f'{i:02d}'"))
    assert 'text "02"' in show_text(made.given(k=3).trace())
    assert 'text "02"' not in show_text(made.trace())


def test_closures_and_helpers(author: Author) -> None:
    """Red when the rewritten source loses a closure's cell, or a helper's f-string."""
    made = author(
        "@part\ndef ask(s, what):\n    s += f'ask {what}'\n"
        "def make(word):\n    @program\n    def inner(s, x):\n        ask(s, x)\n        s += f'{word} {x}'\n"
        "    return inner\n"
        "p = make('hello')\n"
    )
    shown = show_text(made.trace())
    assert 'f"ask {x}"' in shown
    assert 'f"hello {x}"' in shown


def test_a_loop_may_read_what_it_sets(author: Author) -> None:
    """Red when the check of stale values refuses an ordinary counter, or an If inside it."""
    made = author(
        body(
            """
s["n"] = 0
with s.While(s["n"] < 3, max_iterations=5):
    s["n"] = s["n"] + 1
    with s.If(s["n"] == 2):
        s += f"two {s['n']}"
    with s.Else():
        s += f"not two {x}"
s += f"{s['n']}"
"""
        )
    )
    assert "while (n < 3)" in show_text(made.trace())

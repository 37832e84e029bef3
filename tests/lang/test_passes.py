"""Each pass: what it does, and that results are the same with and without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phloem import ProgramError
from phloem.lang import ir
from phloem.lang.draw import show_svg
from phloem.lang.limits import ProgramLimits
from phloem.lang.passes.bounds import bounds
from phloem.lang.passes.context import PassContext
from phloem.lang.passes.pipeline import ALL_PASSES, PASSES, rewrite
from phloem.lang.show import show_mermaid, show_text
from phloem.lang.verify import numbered, verify

Author = Callable[[str], Any]
Runner = Callable[..., Any]

EVERYTHING = """
@program
def p(s, x):
    s["zero"] = 0
    s["name"] = "a" + "b"
    s += commutable(f"arg {x}. ") + commutable("fixed. ")
    with s.If(s["zero"] == 0):
        s += f"{s['name']}:" + gen("one", temperature=1.0)
    with s.Else():
        s["one"] = "never"
    first = s.fork(2, name="first")
    for b in first:
        b += "shared words " + gen("w", temperature=1.0)
        b += "more" + gen("unread")
    s.join(first)
    second = s.fork(2, name="second")
    for i, b in enumerate(second):
        b += f"{i}" + gen("v", temperature=1.0)
        with b.Map(["p", "q"], item="it", name="inner") as m:
            m += "same " + m["it"] + gen("deep", temperature=1.0)
    s.join(second, append=True)
    s += gen("forced", choices=["only"]) + gen("literal", regex="abc")
    s["n"] = 0
    s["loop"] = ""
    with s.While(s["n"] < 2, max_iterations=5):
        s["n"] = s["n"] + 1
        s += gen("loop", temperature=1.0)
    s += select("pick", ["u", "v"], method="unconditional_normalized")
    s += " tail" + gen("dead")
    s["words"] = s.call("field", s["second"], "inner")
    return {"one": s["one"], "w": s["first"][0]["w"] + s["first"][1]["w"], "words": s["words"], "pick": s["pick"],
            "forced": s["forced"], "literal": s["literal"], "loop": s["loop"]}
"""


@pytest.mark.parametrize("passes", [*([name] for name in PASSES if name != "hoist"), ALL_PASSES - {"hoist"}], ids=str)
def test_results_are_the_same(author: Author, run: Runner, passes: Any) -> None:
    """Red when a pass changes what a program returns."""
    made = author(EVERYTHING)
    plain, _ = run(made, {"x": "q"}, passes=())
    assert run(made, {"x": "q"}, passes=passes)[0].variables == plain.variables


def test_with_all_passes_less_is_said(author: Author, run: Runner, engine: Any) -> None:
    """Red when dead generations are made, or forced ones sampled."""
    made = author(EVERYTHING)
    run(made, {"x": "q"}, passes=())
    num_plain = len(engine.prompts)
    run(made, {"x": "q"})
    assert len(engine.prompts) - num_plain == num_plain - 2 - 1 - 2  # unread twice, dead, forced and literal
    assert engine.most_open > 2, "the two forks run together"


def after(author: Author, source: str, *passes: str) -> str:
    return show_text(rewrite(author("@program\n" + source).trace(), passes, PassContext()))


def test_fold(author: Author) -> None:
    """Red when a constant is looked up, an If on one is kept, or a loop's variable is taken for one."""
    shown = after(
        author,
        """
def p(s, x):
    s["a"] = 2
    s["b"] = s["a"] * 3
    with s.If(s["b"] > 5):
        s += f"{s['b']} {x}" + gen("g")
    with s.Else():
        s += "no"
    s["c"] = s.call("majority", [1, 1, 2], name="m")
    s["n"] = 0
    with s.While(s["n"] < 3, max_iterations=4):
        s["n"] = s["n"] + 1
    with s.While(s["a"] == 3, max_iterations=4):
        s += "never"
""",
        "fold",
    )
    assert 'text f"6 {x}"' in shown
    assert "m = 1" in shown
    assert "c = 1" in shown
    assert "while (n < 3)" in shown
    assert "n = (n + 1)" in shown
    assert "if" not in shown.split("while")[0]
    assert "never" not in shown


def test_folding_leaves_errors_where_they_are(author: Author) -> None:
    """Red when a program that fails at run time cannot be compiled."""
    assert "c = json(" in after(author, "def p(s):\n    s['x'] = s.call('json', 'no', name='c')\n", "fold").replace(
        'json("', 'json("'
    )


def test_hoist_moves_only_what_is_commutable(author: Author) -> None:
    """Red when constants do not come first, or a text without the mark moves."""
    shown = after(
        author,
        """
def p(s, x):
    s += gen("g")
    s += commutable(s["g"]) + commutable(f"arg {x}") + commutable("fixed 1") + commutable("fixed 2")
    s += f"later {x}"
    s += "last"
""",
        "hoist",
    )
    order = [shown.index(text) for text in ("fixed 1", "fixed 2", "arg {x}", "text g", "later", "last")]
    assert order == sorted(order)


def test_hoist_keeps_the_words(author: Author, run: Runner, engine: Any) -> None:
    """Red when hoisting loses or doubles a text."""
    made = author("@program\ndef p(s, x):\n    s += commutable(f'<{x}>') + commutable('[a]')\n    s += gen('g')\n")
    run(made, {"x": 1}, passes=())
    run(made, {"x": 1}, passes=("hoist",))
    assert engine.prompts == ["<1>[a]", "[a]<1>"]


def test_factor(author: Author) -> None:
    """Red when branches repeat what they have in common, or share what they have not."""
    shown = after(
        author,
        """
def p(s, x):
    bs = s.fork(2)
    for i, b in enumerate(bs):
        b += user(f"same {x}")
        b += assistant(f"{i}", gen("g"))
    s.join(bs)
    with s.Map(x, item="it") as m:
        m += assistant("all")
        m += user(m["it"], gen("g"))
""",
        "factor",
    )
    prefixes = shown.split("prefix:")
    assert len(prefixes) == 3
    assert 'f"same {x}"' in prefixes[1].split("branches[0]")[0]
    assert shown.count("same") == 1
    assert 'text "all"' in prefixes[2].split("body:")[0]


def test_dead_keeps_what_later_text_depends_on(author: Author) -> None:
    """Red when a generation is removed whose text a later one reads, or one is kept that nobody reads."""
    shown = after(
        author,
        """
def p(s):
    s += "a" + gen("unread_but_said") + gen("wanted")
    s += "after" + gen("nobody") + select("none", ["x", "y"])
    s["z"] = s.call("strip", "q")
    return s["wanted"]
""",
        "dead",
    )
    assert "unread_but_said" in shown
    assert not [word for word in ("after", "nobody", "none", "strip") if word in shown]


def test_dead_inside_loops(author: Author) -> None:
    """Red when what an iteration leaves for the next is taken for dead."""
    shown = after(
        author,
        """
def p(s):
    s["i"] = 0
    s["last"] = "x"
    with s.While(s["i"] < 3, max_iterations=3):
        s["i"] = s["i"] + 1
        s += "say " + s["last"]
        s += gen("out")
        s["last"] = s["out"]
        s["unused"] = 1
    return s["out"] if False else s["last"]
""",
        "dead",
    )
    assert "last = out" in shown
    assert "i = (i + 1)" in shown
    assert "unused" not in shown


def test_parallel_sinks_joins_to_their_first_reader(author: Author) -> None:
    """Red when a join waits earlier than it must, or later than a reader."""
    shown = after(
        author,
        """
def p(s):
    s += "a"
    one = s.fork(2, name="one")
    for b in one:
        b += gen("v")
    s.join(one)
    two = s.fork(2, name="two")
    for b in two:
        b += gen("v")
    s.join(two, append=True)
    s += "b" + gen("g")
    s += one[0]["v"]
""",
        "parallel",
    )
    order = [shown.index(text) for text in ("one = fork of 2, at once", "two = fork of 2, at once", "join two",
                                            'text "b"',
                                            "g = gen()", "join one", "text one[0]")]  # fmt: skip
    assert order == sorted(order)


def test_force(author: Author) -> None:
    """Red when a generation with one outcome is sampled, or one with a stop string or a real pattern is not."""
    shown = after(
        author,
        """
def p(s):
    s += gen("a", choices=["x"]) + gen("b", regex="lit 1") + select("c", ["y"])
    s += gen("d", regex="l.t") + gen("e", choices=["x"], stop="x") + gen("f", choices=["long"], max_tokens=2)
""",
        "force",
    )
    for line in ('a = "x"', 'b = "lit 1"', 'c = "y"', "d = gen(", "e = gen(", "f = gen("):
        assert line in shown


def test_bounds(author: Author) -> None:
    """Red when a bound is not one."""
    program = author(
        """
@program
def p(s, x):
    s += "a"
    with s.While(x, max_iterations=3):
        s += "b" + gen("g", max_tokens=10)
    bs = s.fork(2)
    for b in bs:
        b += "c" + gen("h", max_tokens=5)
    s.join(bs)
    s += select("k", ["u", "v", "w"])
"""
    ).trace()
    limits = ProgramLimits()
    plain = bounds(program, limits=limits)
    assert (plain.min_state_tokens, plain.max_generated_tokens, plain.max_requests) == (2, 43, 8)
    assert plain.max_parallel == 3
    assert bounds(program, limits=limits, count=len).min_pages(1) == 2
    together = rewrite(program, ("parallel",), PassContext())
    assert bounds(together, limits=limits).max_parallel == 5, "the selection does not wait for the branches"


def test_an_unknown_pass_is_named(author: Author) -> None:
    """Red when a misspelt pass is silently off."""
    with pytest.raises(ProgramError, match="no pass 'inline'"):
        after(author, "def p(s):\n    s += 'a'\n", "inline")


def test_pictures_show_every_node(author: Author) -> None:
    """Red when a node is missing from a picture, or a picture is not well formed."""
    from xml.etree import ElementTree

    program = rewrite(author(EVERYTHING).trace(), ALL_PASSES, PassContext())
    num_nodes = len(list(_all(program.body)))
    drawn = ElementTree.fromstring(show_svg(program))
    texts = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert len(texts) == num_nodes
    mermaid = show_mermaid(program)
    assert mermaid.count('["') - mermaid.count("subgraph") == num_nodes
    assert mermaid.count("subgraph") == mermaid.count("end\n") + mermaid.endswith("end")


def _all(block: ir.Block) -> Any:
    from phloem.lang.walk import nodes_in

    return nodes_in(block)


# -- random programs


def _blocks(depth: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    const = st.sampled_from(["a", "b ", ""]).map(lambda value: {"op": "const", "value": value})
    value = st.one_of(const, st.sampled_from(["x", "v"]).map(lambda name: {"op": "var", "name": name}))
    truth = st.one_of(
        st.booleans().map(lambda value: {"op": "const", "value": value}),
        value.map(lambda left: {"op": "compare", "left": left, "how": "==", "right": {"op": "const", "value": "a"}}),
    )
    leaf = st.one_of(
        st.builds(lambda v, c: {"op": "text", "value": v, "commutable": c}, value, st.just(False)),
        st.builds(
            lambda n, t: {"op": "gen", "name": n, "temperature": t, "max_tokens": 9},
            st.sampled_from("vw"),
            st.sampled_from([0, 1]),
        ),
        st.builds(lambda v: {"op": "set", "name": "v", "value": v}, value),
        st.just({"op": "gen", "name": "w", "choices": ["only"]}),
        st.just({"op": "select", "name": "w", "choices": {"op": "const", "value": ["p", "q"]}}),
    )
    if depth == 0:
        return st.lists(leaf, max_size=3)
    inner = _blocks(depth - 1)

    def forked(node: dict[str, Any], append: bool, between: list[dict[str, Any]], read: str) -> list[dict[str, Any]]:
        return [node, *between, {"op": "join", "fork": node["name"], "append": append}, *_reading(node["name"], read)]

    names = st.sampled_from(["f", "g", "h"])
    sets_v = {"op": "set", "name": "v", "value": {"op": "format", "parts": [{"op": "var", "name": "x"}]}}
    inside = inner.map(lambda body: [sets_v, *body])
    fork = st.builds(
        lambda n, b: {"op": "fork", "name": n, "branches": b}, names, st.lists(inside, min_size=1, max_size=3)
    )
    items = st.one_of(
        st.just({"op": "const", "value": ["1", "2"]}),
        st.builds(lambda v: {"op": "list", "items": [v, {"op": "var", "name": "x"}]}, value),
    )
    map_ = st.builds(lambda n, i, b: {"op": "map", "name": n, "items": i, "item": "x", "body": b}, names, items, inside)
    reads = st.sampled_from(["nothing", "field", "record", "call"])
    branches = st.builds(forked, st.one_of(fork, map_), st.booleans(), st.lists(leaf, max_size=1), reads)
    branch = st.builds(lambda c, t, e: [{"op": "if", "condition": c, "then": t, "orelse": e}], truth, inner, inner)
    loop = st.builds(lambda c, b: [{"op": "while", "condition": c, "max_iterations": 2, "body": b}], truth, inner)
    pieces = st.lists(st.one_of(leaf.map(lambda node: [node]), branches, branch, loop), max_size=4)
    return pieces.map(lambda lists: [node for nodes in lists for node in nodes])


def _reading(fork: str, how: str) -> list[dict[str, Any]]:
    """What comes after a join: nothing of its records is read, one field, a whole record, or all by a function."""
    records = {"op": "var", "name": fork}
    first = {"op": "item", "of": records, "key": {"op": "const", "value": 0}}
    match how:
        case "field":
            return [
                {"op": "set", "name": "w", "value": {"op": "item", "of": first, "key": {"op": "const", "value": "v"}}}
            ]
        case "record":
            return [{"op": "text", "value": {"op": "format", "parts": [first]}}]
        case "call":
            field = {"op": "call", "name": "w", "function": "field", "args": [records, {"op": "const", "value": "v"}]}
            return [field, {"op": "call", "name": "w", "function": "majority", "args": [{"op": "var", "name": "w"}]}]
        case _:
            return []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=_blocks(2), outputs=st.one_of(st.none(), st.just(["v"]), st.just(["v", "w"])))
def test_random_programs_give_the_same_results(
    new_engine: Any, body: list[dict[str, Any]], outputs: list[str] | None
) -> None:
    """Red when any pass changes what some program returns; the verifier runs after each."""
    import asyncio

    from phloem.lang.prepare import RunOptions, prepare

    start = [{"op": "set", "name": name, "value": {"op": "const", "value": "a"}} for name in "vwx"]
    program = ir.from_json(json.dumps({"version": 1, "name": "p", "body": start + body, "outputs": outputs}))
    verify(numbered(program))

    def result(passes: Any) -> Any:
        made = prepare(program, RunOptions(passes=passes)).run(new_engine(), seed=1, emit=lambda _: None)
        done = asyncio.run(made.execute({}))
        return done.variables, done.text

    plain = result(())
    for passes in [*([name] for name in PASSES), ALL_PASSES]:
        assert result(passes) == plain, passes

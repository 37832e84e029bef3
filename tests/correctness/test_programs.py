"""Passes change when a program's requests run, and beside what; on the real model its results stay the same."""

from __future__ import annotations

from typing import Any

from phloem import LLM, RunOptions, gen, program, select


@program
def tree(s: Any, topic: Any) -> Any:
    s += f"Ideas about {topic}.\n"
    plans = s.fork(2, name="plans")
    for i, plan in enumerate(plans):
        plan += f"Idea {i}:" + gen("plan", max_tokens=8, temperature=0.9, stop="\n")
        steps = plan.fork(2, name="steps")
        for step in steps:
            step += "\nFirst step:" + gen("step", max_tokens=8)
        plan.join(steps)
    s.join(plans)
    s += "The best is number" + select("best", [" 0", " 1"])
    with s.Map(["good", "bad"], item="word", name="labels") as m:
        m += f"\nIs it {m['word']}? Answer:" + select("label", [" yes", " no"], method="unconditional_normalized")
    return s["plans"], s["best"], s["labels"]


def test_passes_change_no_result(fast_llm: LLM) -> None:
    """Red when a pass, a cached prefix or a neighbour in the batch changes a token or a choice."""
    plain = fast_llm.run(tree, RunOptions(seed=3, passes=(), namespace="off"), topic="a garden")
    everything = fast_llm.run(tree, RunOptions(seed=3, namespace="on"), topic="a garden")
    assert everything.variables == plain.variables
    batch = fast_llm.run_batch(tree, [{"topic": "a garden"}, {"topic": "a pond"}], RunOptions(seed=3))
    assert batch[1].variables != batch[0].variables

"""The programs in this language."""

from __future__ import annotations

from typing import Any

from bench.programs import tasks
from phloem import assistant, gen, program, select, user


@program
def chat(s: Any, questions: Any, *, turns: int = len(tasks.QUESTIONS)) -> Any:
    for turn in range(turns):
        s += user(questions[turn])
        s += assistant(gen(f"answer_{turn}", max_tokens=tasks.CHAT_TOKENS))
    return s[f"answer_{turns - 1}"]


@program
def tree_of_thought(s: Any, problem: Any) -> Any:
    s += f"Problem: {problem}\nThink of different plans.\n"
    plans = s.fork(tasks.NUM_PLANS, name="plans")
    for i, plan in enumerate(plans):
        plan += f"Plan {i}:" + gen("plan", max_tokens=tasks.PLAN_TOKENS)
        steps = plan.fork(tasks.NUM_STEPS, name="steps")
        for j, step in enumerate(steps):
            step += f"\nStep {j} in detail:" + gen("step", max_tokens=tasks.PLAN_TOKENS)
        plan.join(steps)
    s.join(plans)
    for i, plan in enumerate(plans):
        s += f"Plan {i}:{plan['plan']}\n"
    s += "The best plan is number" + select("best", [f" {i}" for i in range(tasks.NUM_PLANS)])
    return s["best"], s["plans"]


@program
def judge(s: Any, essay: Any) -> Any:
    s += f"Essay: {essay}\n"
    dimensions = s.fork(len(tasks.DIMENSIONS), name="dimensions")
    for name, b in zip(tasks.DIMENSIONS, dimensions):
        b += f"The {name} of this essay, judged in one sentence:" + gen("said", max_tokens=24, stop="\n")
    s.join(dimensions)
    for name, b in zip(tasks.DIMENSIONS, dimensions):
        s += f"{name}:{b['said']}\n"
    s += "The verdict as JSON: " + gen("verdict", json_schema=tasks.VERDICT, max_tokens=96)
    return s["verdict"]


@program
def extraction(s: Any, documents: Any) -> Any:
    s += tasks.EXTRACTION_HEAD
    with s.Map(documents, item="document", name="found") as m:
        m += f"Text: {m['document']}\nJSON: " + gen("json", regex=tasks.CITY, max_tokens=96)
    return s["found"]


@program
def react(s: Any, question: Any) -> Any:
    s += f"{tasks.REACT_HEAD}Question: {question}\n"
    s["action"] = ""
    with s.While(s["action"] != " finish", max_iterations=tasks.REACT_ROUNDS):
        s += "Thought:" + gen("thought", max_tokens=24, stop="\n")
        s += "\nAction:" + select("action", tasks.ACTIONS)
        with s.If(s["action"] != " finish"):
            s += "[" + gen("query", max_tokens=12, stop=["]", "\n"])
            s += f"]\nObservation: nothing about {s.call('lower', s['query'], name='lowered')}.\n"
    s += "\nAnswer:" + gen("answer", max_tokens=16, stop="\n")
    return s["answer"]


@program
def self_consistency(s: Any, problem: Any) -> Any:
    s += f"Q: {problem}\nA: Let us think step by step."
    chains = s.fork(tasks.NUM_CHAINS, name="chains")
    for i, b in enumerate(chains):
        b += gen("thought", max_tokens=32, temperature=0.8, seed=i + 1)
        b += " So the answer is" + gen("answer", max_tokens=4, seed=i + 1, stop=["\n", "."])
    s.join(chains)
    return s.call("majority", s.call("field", s["chains"], "answer"), name="answer")


@program
def classification(s: Any, reviews: Any) -> Any:
    s += tasks.FEW_SHOT
    with s.Map(reviews, item="review", name="labels") as m:
        m += f"Review: {m['review']}\nSentiment:" + select("label", tasks.LABELS)
    return s["labels"]

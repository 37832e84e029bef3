"""The same tasks as one writes them with the openai package. `spread` runs independent requests: one after the other,
or in threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import openai

from bench.programs import tasks

T = TypeVar("T")
A = TypeVar("A")


class Plain:
    """A client that counts. `salt` keeps its cached prefixes apart from those of other runs."""

    def __init__(self, client: openai.OpenAI, *, model: str, salt: str, in_threads: bool) -> None:
        self._client, self._model, self._salt, self._in_threads = client, model, salt, in_threads
        self.num_requests = self.prompt_tokens = self.computed_tokens = self.generated_tokens = 0

    def spread(self, work: Callable[[A], T], items: Sequence[A]) -> list[T]:
        """`work` on each item."""
        if not self._in_threads:
            return [work(item) for item in items]
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(work, items))

    def complete(self, prompt: str, **options: Any) -> str:
        """The continuation of a text."""
        extra = {"cache_salt": self._salt, **options.pop("extra", {})}
        answer = self._client.completions.create(
            model=self._model, prompt=prompt, temperature=options.pop("temperature", 0), extra_body=extra, **options
        )
        self._count(answer.usage)
        return answer.choices[0].text

    def select(self, prompt: str, choices: Sequence[str]) -> str:
        """The likeliest choice by its mean log-probability, from echoed prompts."""
        scores = self.spread(lambda choice: self._score(prompt, choice), choices)
        return choices[scores.index(max(scores))]

    def _score(self, prompt: str, choice: str) -> float:
        answer = self._client.completions.create(
            model=self._model, prompt=prompt + choice, max_tokens=0, temperature=0, echo=True, logprobs=0,
            extra_body={"cache_salt": self._salt},
        )  # fmt: skip
        self._count(answer.usage)
        found = answer.choices[0].logprobs
        values = [
            value for offset, value in zip(found.text_offset, found.token_logprobs) if offset >= len(prompt) and value
        ]
        return sum(values) / len(values)

    def chat(self, messages: list[dict[str, str]], max_tokens: int) -> str:
        """The next message."""
        answer = self._client.chat.completions.create(
            model=self._model, messages=messages, max_tokens=max_tokens, temperature=0,  # type: ignore[arg-type]
            extra_body={"cache_salt": self._salt},
        )  # fmt: skip
        self._count(answer.usage)
        return answer.choices[0].message.content or ""

    def _count(self, usage: Any) -> None:
        self.num_requests += 1
        self.prompt_tokens += usage.prompt_tokens
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        self.computed_tokens += usage.prompt_tokens - (cached or 0)
        self.generated_tokens += usage.completion_tokens


def chat(p: Plain) -> Any:
    messages: list[dict[str, str]] = []
    for question in tasks.QUESTIONS:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": p.chat(messages, tasks.CHAT_TOKENS)})
    return messages[-1]["content"]


def tree_of_thought(p: Plain) -> Any:
    head = f"Problem: {tasks.PROBLEM}\nThink of different plans.\n"

    def plan(i: int) -> tuple[str, list[str]]:
        start = f"{head}Plan {i}:"
        start += (said := p.complete(start, max_tokens=tasks.PLAN_TOKENS))

        def step(j: int) -> str:
            return p.complete(f"{start}\nStep {j} in detail:", max_tokens=tasks.PLAN_TOKENS)

        return said, p.spread(step, range(tasks.NUM_STEPS))

    plans = p.spread(plan, range(tasks.NUM_PLANS))
    end = head + "".join(f"Plan {i}:{said}\n" for i, (said, _) in enumerate(plans)) + "The best plan is number"
    return p.select(end, [f" {i}" for i in range(tasks.NUM_PLANS)]), plans


def judge(p: Plain) -> Any:
    head = f"Essay: {tasks.ESSAY}\n"
    said = p.spread(
        lambda name: p.complete(f"{head}The {name} of this essay, judged in one sentence:", max_tokens=24, stop="\n"),
        tasks.DIMENSIONS,
    )
    end = head + "".join(f"{name}:{text}\n" for name, text in zip(tasks.DIMENSIONS, said)) + "The verdict as JSON: "
    return p.complete(end, max_tokens=96, extra={"guided_json": tasks.VERDICT})


def extraction(p: Plain) -> Any:
    return p.spread(
        lambda text: p.complete(
            f"{tasks.EXTRACTION_HEAD}Text: {text}\nJSON: ", max_tokens=96, extra={"guided_regex": tasks.CITY}
        ),
        tasks.DOCUMENTS,
    )


def react(p: Plain) -> Any:
    text = f"{tasks.REACT_HEAD}Question: {tasks.QUESTION}\n"
    for _ in range(tasks.REACT_ROUNDS):
        text += "Thought:"
        text += p.complete(text, max_tokens=24, stop="\n") + "\nAction:"
        action = p.select(text, tasks.ACTIONS)
        text += action
        if action == " finish":
            break
        query = p.complete(text + "[", max_tokens=12, stop=["]", "\n"])
        text += f"[{query}]\nObservation: nothing about {query.lower()}.\n"
    return p.complete(text + "\nAnswer:", max_tokens=16, stop="\n")


def self_consistency(p: Plain) -> Any:
    head = f"Q: {tasks.WORD_PROBLEM}\nA: Let us think step by step."

    def chain(i: int) -> str:
        text = head + p.complete(head, max_tokens=32, temperature=0.8, seed=i + 1) + " So the answer is"
        return p.complete(text, max_tokens=4, seed=i + 1, stop=["\n", "."])

    return Counter(p.spread(chain, range(tasks.NUM_CHAINS))).most_common(1)[0][0]


def classification(p: Plain) -> Any:
    return p.spread(
        lambda review: p.select(f"{tasks.FEW_SHOT}Review: {review}\nSentiment:", tasks.LABELS), tasks.REVIEWS
    )

"""From engine events to text: stop strings, several prompts, failures, and the counts that are billed."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from phloem.core import wire
from phloem.core.errors import ContextLengthExceeded, EngineDead, PhloemError, RequestFailed
from phloem.core.request import SamplingParams
from phloem.serve.client import FakeEngineClient
from phloem.serve.openai.errors import failure_of
from phloem.serve.openai.generation import Delta, Generation, merged, usage_of
from phloem.serve.text.stop import StopStrings

pytestmark = pytest.mark.anyio
READY = wire.Ready(model="tiny", max_model_len=256, max_prompt_len=255, vocab_size=258)


class Listener:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.num_generated = 0
        self.reasons: list[str] = []

    def accepted(self, *, num_prompt_tokens: int) -> None: ...

    def cached(self, num_tokens: int) -> None: ...

    def generated(self, num_tokens: int) -> None:
        self.num_generated += num_tokens

    def choice_finished(self, reason: str) -> None:
        self.reasons.append(reason)


def generation(tokenizer, engine, *, name="r", first_index=0, observer=None, **sampling) -> Generation:
    params = SamplingParams(**{"max_tokens": 100, **sampling})
    return Generation(
        submit=wire.Submit(name, tuple(b"prompt"), params),
        first_index=first_index,
        client=engine,
        tokenizer=tokenizer,
        stops=StopStrings(params.stop),
        observer=observer or Listener(),
    )


async def read(*generations: Generation) -> list[Delta]:
    async with aclosing(merged(generations)) as deltas:
        return [delta async for delta in deltas]


def fake(text: str = "", **options) -> FakeEngineClient:
    return FakeEngineClient(ready=READY, script=lambda *_: list(text.encode()), **options)


async def test_stop_string_ends_the_choice_tells_the_engine_and_hides_what_follows(tokenizer):
    """Red when text after a stop string is shown or billed, or the engine goes on generating it."""
    engine, listener = fake("one two three four"), Listener()
    made = generation(tokenizer, engine, stop=("two",), observer=listener)
    deltas = await read(made)
    assert "".join(delta.text for delta in deltas) == "one "
    assert (deltas[-1].finish, deltas[-1].stop_reason) == ("stop", "two")
    assert wire.Stop("r", 0) in engine.commands
    assert made.num_generated_tokens == listener.num_generated == len("one two")
    assert listener.reasons == ["stop"]


async def test_stop_string_met_with_the_last_token_sends_no_stop(tokenizer):
    """Red when the engine is told to stop a choice that it finished itself."""
    engine = fake("one two")
    deltas = await read(generation(tokenizer, engine, stop=("two",)))
    assert deltas[-1].finish == "stop"
    assert not [command for command in engine.commands if isinstance(command, wire.Stop)]


async def test_held_back_text_is_shown_when_the_stop_string_never_completes(tokenizer):
    """Red when the beginning of a stop string at the end of a text is lost."""
    deltas = await read(generation(tokenizer, fake("one tw"), stop=("two",)))
    assert "".join(delta.text for delta in deltas) == "one tw"
    assert (deltas[-1].finish, deltas[-1].stop_reason) == ("length", None)


async def test_characters_are_never_cut(tokenizer):
    """Red when the bytes of one character reach the text in two pieces."""
    deltas = await read(generation(tokenizer, fake("日本 🙂")))
    assert [delta.text for delta in deltas if delta.text] == ["日", "本", " ", "🙂"]


async def test_end_token_is_counted_but_not_shown(tokenizer):
    """Red when the end token's text appears, even with special tokens shown, or its cost does not."""
    for skip in (True, False):
        engine = FakeEngineClient(ready=READY, script=lambda *_: [*b"ok", 257, *b"no"], end_ids=frozenset({257}))
        made = generation(tokenizer, engine, skip_special_tokens=skip)
        deltas = await read(made)
        assert "".join(delta.text for delta in deltas) == "ok"
        assert (deltas[-1].finish, deltas[-1].stop_reason, made.num_generated_tokens) == ("stop", 257, 3)


async def test_choices_have_detokenizers_of_their_own(tokenizer):
    """Red when two choices share the state of a character or a stop string."""
    texts = ["é one", "日 two"]
    engine = FakeEngineClient(ready=READY, script=lambda _, choice: list(texts[choice].encode()))
    deltas = await read(generation(tokenizer, engine, n=2))
    for index, text in enumerate(texts):
        assert "".join(delta.text for delta in deltas if delta.index == index) == text


async def test_prompts_are_merged_and_billed_together(tokenizer):
    """Red when choices of different prompts collide, or usage counts one prompt."""
    engine = fake("abc", step_s=0.001)
    made = [generation(tokenizer, engine, name=f"r{i}", first_index=2 * i, n=2) for i in range(3)]
    deltas = await read(*made)
    assert sorted({delta.index for delta in deltas}) == [0, 1, 2, 3, 4, 5]
    usage = usage_of(made)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (18, 18, 36)


async def test_one_failure_ends_and_aborts_the_others(tokenizer):
    """Red when a failed prompt leaves its siblings running."""
    engine = fake("x" * 100, step_s=0.01)
    made = [generation(tokenizer, engine, name=f"r{i}", first_index=i) for i in range(3)]
    reading = asyncio.create_task(read(*made))
    await asyncio.sleep(0.03)
    engine.route(wire.Failed("r1", code="request_failed", message="numbers went wrong"))
    with pytest.raises(RequestFailed, match="numbers went wrong"):
        await reading
    assert {command.request_id for command in engine.commands if isinstance(command, wire.Abort)} == {"r0", "r2"}
    assert engine.open_ids == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("engine_dead", EngineDead),
        ("context_length_exceeded", ContextLengthExceeded),
        ("request_failed", RequestFailed),
        ("never heard of", RequestFailed),
    ],
)
def test_failures_become_the_error_they_name(code: str, kind: type[PhloemError]):
    """Red when an engine's failure loses its status."""
    error = failure_of(wire.Failed("r", code=code, message="why"))
    assert (type(error), error.message) == (kind, "why")

"""`LLM` on the null worker: what goes in and comes out. What a real model says is tested with the models."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import phloem
from phloem import LLM, ConfigError, EngineDead, InvalidRequest, ModelError, SamplingParams


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("dummy:null") as made:
        yield made


def test_a_text_gives_one_output(llm: LLM) -> None:
    """Red when a prompt, its tokens or the counts get lost."""
    [output] = llm.generate("Hello", SamplingParams(max_tokens=5))
    assert (output.prompt, len(output.prompt_token_ids)) == ("Hello", 5)
    [choice] = output.outputs
    assert len(choice.token_ids) == len(choice.text) == 5  # a byte is a token
    assert (choice.finish_reason, choice.stop_reason, choice.logprobs) == ("length", None, None)
    assert (output.usage.prompt_tokens, output.usage.completion_tokens) == (5, 5)
    assert output.text == choice.text


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    """Red when outputs are returned as they finish."""
    prompts = [f"prompt {number}" for number in range(20)]
    params = [SamplingParams(max_tokens=1 + (number * 7) % 20, seed=number) for number in range(20)]
    outputs = llm.generate(prompts, params, progress=False)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [each.max_tokens for each in params]


def test_token_ids_and_lists_of_them_are_prompts(llm: LLM) -> None:
    """Red when [1, 2, 3] is taken for three prompts, or an empty list for an error."""
    [one] = llm.generate([1, 2, 3], SamplingParams(max_tokens=2))
    assert (one.prompt, one.prompt_token_ids) == (None, (1, 2, 3))
    assert len(llm.generate([[1, 2], [3]], SamplingParams(max_tokens=2))) == 2
    assert llm.generate([]) == []


def test_a_path_names_a_model(tmp_path: Path) -> None:
    """Red when a pathlib.Path is refused for its type."""
    with pytest.raises(ModelError, match="no model at"):
        LLM(tmp_path / "none.gguf")


def test_params_of_another_type_are_refused(llm: LLM) -> None:
    """Red when the caller's mistake is a TypeError from the inside."""
    with pytest.raises(InvalidRequest, match="not int"):
        llm.generate("a", 5)  # type: ignore[arg-type]


def test_a_seed_makes_it_repeatable_whatever_the_batch(llm: LLM) -> None:
    """Red when a seed is dropped on the way to the engine."""
    params = SamplingParams(max_tokens=12, seed=7)
    [alone] = llm.generate("same", params)
    batch = llm.generate(["other", "same", "third"], params)
    assert batch[1].text == alone.text


def test_n_choices_differ_and_share_the_prompt(llm: LLM) -> None:
    """Red when choices are mixed up."""
    [output] = llm.generate("Hello", SamplingParams(max_tokens=10, n=4, seed=1))
    assert [choice.index for choice in output.outputs] == [0, 1, 2, 3]
    assert len({choice.text for choice in output.outputs}) == 4
    assert output.usage.completion_tokens == 40


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    """Red when a stop string is not sent back to the engine, or is left in the text."""
    [free] = llm.generate("Hello", SamplingParams(max_tokens=200, seed=3))
    stop = free.text[100:102]
    [stopped] = llm.generate("Hello", SamplingParams(max_tokens=200, seed=3, stop=(stop,)))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert (stopped.outputs[0].finish_reason, stopped.outputs[0].stop_reason) == ("stop", stop)


def test_logprobs_come_one_a_token(llm: LLM) -> None:
    """Red when logprobs are lost, or come unasked."""
    [output] = llm.generate("Hello", SamplingParams(max_tokens=6, logprobs=0, prompt_logprobs=0))
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    assert tuple(entry.token_id for entry in logprobs) == output.outputs[0].token_ids
    assert output.prompt_logprobs is not None
    assert tuple(entry.token_id for entry in output.prompt_logprobs) == output.prompt_token_ids[1:]


def test_the_second_time_a_prompt_is_cached(llm: LLM) -> None:
    """Red when usage does not say what was cached."""
    prompt = [5] * 300
    first, second = (llm.generate(prompt, SamplingParams(max_tokens=1))[0] for _ in range(2))
    assert first.usage.cached_tokens < second.usage.cached_tokens
    assert second.usage.cached_tokens == 299


def test_streaming_gives_the_same_text_in_pieces(llm: LLM) -> None:
    """Red when stream and generate differ."""
    params = SamplingParams(max_tokens=30, seed=5)
    pieces = list(llm.stream("Hello", params))
    assert len(pieces) > 10
    assert "".join(pieces) == llm.generate("Hello", params)[0].text


def test_leaving_a_stream_early_frees_the_request(llm: LLM) -> None:
    """Red when an abandoned stream goes on running: the next request would wait for its row or see its events."""
    for _ in range(100):  # more than there are rows
        pieces = llm.stream("Hello", SamplingParams(max_tokens=4000))
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
    assert len(llm.generate("Hello", SamplingParams(max_tokens=3))[0].text) == 3


def test_ctrl_c_ends_the_call_and_not_the_engine(llm: LLM) -> None:
    """Red when an interrupt hits the middle of a step, or leaves requests running."""
    for delay_s in (0.05, 0.051, 0.052, 0.053):
        timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["Hello"] * 8, SamplingParams(max_tokens=4000))
        assert len(llm.generate("Hello", SamplingParams(max_tokens=3))[0].text) == 3


def test_chat_answers_one_or_several_conversations(llm: LLM) -> None:
    """Red when the template is not applied, or a list of conversations is taken for one."""
    ask = [{"role": "user", "content": "Hello"}]
    params = SamplingParams(max_tokens=4)
    [one] = llm.chat(ask, params)
    assert len(one.prompt_token_ids) > len("Hello")
    assert len(llm.chat([ask, ask], params)) == 2


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -5}, "top_k"),
        ({"n": 0}, "n"),
        ({"stop": ("",)}, "stop"),
        ({"stop_token_ids": (10**9,)}, "stop_token_ids"),
        ({"logprobs": -1}, "logprobs"),
        ({"logit_bias": {10**9: 1.0}}, "logit_bias"),
        ({"seed": object()}, "params"),
    ],
)
def test_wrong_parameters_name_the_field(llm: LLM, values: dict[str, Any], field: str) -> None:
    """Red when a value that HTTP refuses reaches the engine from Python."""
    with pytest.raises(InvalidRequest, match=field):
        llm.generate("Hello", SamplingParams(**values))


@pytest.mark.parametrize("prompts", ["", [""], [[]], [[1, "two"]], [[10**9]], ["x" * 5000], 7, [None], "\ud800"])
def test_wrong_prompts_are_named_and_nothing_is_lost(llm: LLM, prompts: Any) -> None:
    """Red when a wrong prompt raises anything else, hangs, or leaves the engine unusable."""
    with pytest.raises(InvalidRequest) as caught:
        llm.generate(prompts)
    assert (caught.value.field or "").startswith("prompts")
    assert llm.generate("fine")[0].text


def test_wrong_counts_of_parameters(llm: LLM) -> None:
    """Red when zip drops prompts silently."""
    with pytest.raises(InvalidRequest, match="params"):
        llm.generate(["a", "b"], [SamplingParams()])


def test_the_longest_prompt_leaves_room_for_one_token(llm: LLM) -> None:
    """Red when max_tokens is not clipped to the context."""
    [output] = llm.generate([1] * (llm.max_model_len - 1), SamplingParams(max_tokens=50))
    assert (len(output.outputs[0].token_ids), output.outputs[0].finish_reason) == (1, "length")


def test_options_are_those_of_the_command_line() -> None:
    """Red when LLM accepts what `phloem serve` refuses."""
    with pytest.raises(ConfigError, match="no_such_option"):
        LLM("dummy:null", no_such_option=1)
    with pytest.raises(ConfigError, match="max_running"):
        LLM("dummy:null", max_running=0)
    with pytest.raises(ModelError, match="nowhere"):
        LLM("nowhere")


def test_a_closed_llm_says_so() -> None:
    """Red when closing twice fails, or using it afterwards hangs."""
    made = LLM("dummy:null")
    made.close()
    made.close()
    with pytest.raises(EngineDead):
        made.generate("Hello")


def test_every_exported_name_exists() -> None:
    """Red when phloem/__init__.py promises what is not there."""
    for name in phloem.__all__:
        assert getattr(phloem, name) is not None
    with pytest.raises(AttributeError):
        phloem.nonsense  # noqa: B018


def test_a_recording_can_be_replayed(tmp_path: Any) -> None:
    """Red when --record is not wired, or the file is not complete at the end."""
    from phloem.runtime.record import replay

    path = tmp_path / "decisions"
    with LLM("dummy:null", record=str(path)) as made:
        made.generate(["a", "b"], SamplingParams(max_tokens=9))
    assert replay(path) >= 9


def test_outputs_can_be_stored_as_json(llm: LLM) -> None:
    """Red when an output holds something that is not a plain value."""
    [output] = llm.generate("Hello", SamplingParams(max_tokens=2))
    assert msgspec.json.decode(msgspec.json.encode(output), type=phloem.RequestOutput) == output

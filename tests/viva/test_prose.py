"""Prose to sentences, markers and code."""

from __future__ import annotations

import pytest

from viva.verify.prose import chains_of, code_words, markers, paragraphs, sentences


def test_markers_after_a_full_stop_belong_to_the_sentence_before() -> None:
    """Red when a marker moves to the next sentence, which then looks cited while its own looks bare."""
    text = "先收请求。[c1][c2] 再看标志 [c3, c4]。没有引用。"
    assert [markers(sentence) for sentence in sentences(text)] == [["c1", "c2"], ["c3", "c4"], []]


def test_full_stops_inside_code_end_no_sentence() -> None:
    """Red when `a. b` between backticks is cut."""
    assert sentences("见 `f(x). y` 与 v0.5. 然后") == ["见 `f(x). y` 与 v0.5.", "然后"]


def test_paragraphs_are_parted_by_empty_lines() -> None:
    """Red when one line break makes two paragraphs."""
    assert paragraphs("a\nb\n\n c\n") == ["a\nb", " c"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("`Scheduler.run_batch` 调用", ["Scheduler.run_batch"]),
        ("字段 num_tokens 与 RadixCache", ["num_tokens", "RadixCache"]),
        ("调用 `self.pool.free(x[0], size=n)`", ["self.pool.free", "x", "size", "n"]),
        ("`len(reqs) * page_size`", ["len", "reqs", "page_size"]),
        ("D2H 与 GiB、KV cache、vLLM、SGLang、0.5.23、e.g. 说明", []),
        ("用 `--chunked-prefill-size 8192` 打开", ["--chunked-prefill-size"]),
        ("--enable-x 打开", ["--enable-x"]),
        ("`srt/managers/scheduler.py:120-130` 里", ["srt/managers/scheduler.py"]),
        ("`a.py::Class.method`", ["Class.method", "a.py"]),
        ("`请求数 * page_size`", ["page_size"]),
        ("`x -> y[` 破损", ["x", "y"]),
        ("run() 与 _private_name", ["run", "_private_name"]),
        ("SGLANG_X_Y 环境变量 [c1]", ["SGLANG_X_Y"]),
    ],
)
def test_what_counts_as_code(text: str, names: list[str]) -> None:
    """Red when an identifier in prose is overlooked, or an ordinary word is taken for one."""
    assert sorted(code_words(text).every) == sorted(names)


def test_string_literals_are_no_names() -> None:
    """Red when `mode == "fast"` asks for an identifier called fast."""
    assert chains_of('mode == "fast"') == ["mode"]

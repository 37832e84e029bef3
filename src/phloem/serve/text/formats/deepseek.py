"""DeepSeek: V3, R1 and its distillations write the arguments into a fenced block, V3.1 behind the name."""

from __future__ import annotations

from phloem.serve.text.formats.spec import ReasoningFormat, ToolFormat

DEEPSEEK = ToolFormat(
    name="deepseek",
    marks=("<｜tool▁calls▁begin｜>", "```json"),
    begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    name_end="\n```json\n",
    call_end="\n```<｜tool▁call▁end｜>",
    separator="\n",
    end="<｜tool▁calls▁end｜>",
    arguments_are_text=True,
)
DEEPSEEK_V31 = ToolFormat(
    name="deepseek-v3.1",
    marks=("<｜tool▁calls▁begin｜>",),
    begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>",
    name_end="<｜tool▁sep｜>",
    call_end="<｜tool▁call▁end｜>",
    separator="",
    end="<｜tool▁calls▁end｜>",
    arguments_are_text=True,
)
THINK = ReasoningFormat(name="think", marks=("</think>",), begin="<think>", end="</think>")

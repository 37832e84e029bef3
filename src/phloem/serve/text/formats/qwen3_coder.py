"""Qwen3-Coder: a function and its parameters between tags, values as plain text."""

from __future__ import annotations

from phloem.serve.text.formats.spec import ArgumentTags, ToolFormat

QWEN3_CODER = ToolFormat(
    name="qwen3-coder",
    marks=("<tool_call>", "<function=", "<parameter="),
    call_begin="<tool_call>\n<function=",
    name_end=">\n",
    argument_tags=ArgumentTags(
        begin="<parameter=",
        name_end=">\n",
        end="\n</parameter>\n",
        close="</function>",
    ),
    call_end="\n</tool_call>",
    separator="\n",
)

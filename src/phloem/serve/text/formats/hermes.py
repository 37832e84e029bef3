"""Hermes 2 and 3, Qwen2.5, Qwen3, and the format of models that bring none: one tagged JSON object a call."""

from __future__ import annotations

from phloem.serve.text.formats.spec import ToolFormat

HERMES = ToolFormat(
    name="hermes",
    marks=("<tool_call>",),
    call_begin="<tool_call>\n",
    call_end="\n</tool_call>",
    separator="\n",
)

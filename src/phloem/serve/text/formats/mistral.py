"""Mistral: a JSON list after one token (tokenizers v3 to v7), or a token, a name, a token, the arguments (v11 on)."""

from __future__ import annotations

from phloem.serve.text.formats.spec import ReasoningFormat, ToolFormat

MISTRAL = ToolFormat(
    name="mistral",
    marks=("[TOOL_CALLS]",),
    begin="[TOOL_CALLS] [",
    separator=", ",
    end="]",
    id_prefix="",
    num_id_characters=9,  # its templates refuse any other length
)
MISTRAL_V11 = ToolFormat(
    name="mistral-v11",
    marks=("[TOOL_CALLS]", "[ARGS]"),
    call_begin="[TOOL_CALLS]",
    name_end="[ARGS]",
    separator="",
    id_prefix="",
    num_id_characters=9,
)
MISTRAL_THINK = ReasoningFormat(name="mistral", marks=("[THINK]",), begin="[THINK]", end="[/THINK]")

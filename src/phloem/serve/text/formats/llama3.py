"""Llama 3.1, 3.2 and 3.3 (model cards, JSON based tool calling): a bare JSON object, or one after a token."""

from __future__ import annotations

from phloem.serve.text.formats.spec import ToolFormat

LLAMA3 = ToolFormat(
    name="llama3",
    marks=("<|start_header_id|>", '"parameters": '),
    begin="<|python_tag|>",
    arguments_key="parameters",
    separator="; ",
    is_bare=True,
)

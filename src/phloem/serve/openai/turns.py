"""Turn: one choice's text as the fields of its message, in deltas and whole."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from msgspec import UNSET

from phloem.serve.openai.generation import Delta
from phloem.serve.openai.responses import (
    AssistantMessage,
    ChatFinishReason,
    FinishReason,
    FunctionCall,
    FunctionCallDelta,
    MessageDelta,
    ToolCall,
    ToolCallDelta,
)
from phloem.serve.text.formats.parser import Arguments, CallStart, Content, Event, OutputParser, Reasoning
from phloem.serve.text.formats.spec import ToolFormat


class Turn:
    """Reads one choice through its parser (None: all text is content). `read` gives what is new; `message` the whole,
    once everything was read. `format` None, or with_reasoning false: no call, and no reasoning, is written."""

    def __init__(self, parser: OutputParser | None, *, format: ToolFormat | None, with_reasoning: bool) -> None:
        self._parser = parser
        self._format = format
        self._with_reasoning = with_reasoning
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []

    def read(self, delta: Delta) -> MessageDelta:
        """What the next text adds."""
        if self._parser is None:
            events: list[Event] = [Content(delta.text)] if delta.text else []
        else:
            events = self._parser.feed(delta.text)
            events += self._parser.finish() if delta.finish is not None else []
        content = "".join(event.text for event in events if isinstance(event, Content))
        reasoning = "".join(event.text for event in events if isinstance(event, Reasoning) and self._with_reasoning)
        calls = self._read_calls(events)
        self._content.append(content)
        self._reasoning.append(reasoning)
        return MessageDelta(
            content=content or UNSET, reasoning_content=reasoning or UNSET, tool_calls=calls if calls else UNSET
        )

    def message(self) -> AssistantMessage:
        """Everything that was read."""
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        calls = [ToolCall(call.id, FunctionCall(call.name, "".join(call.pieces))) for call in self._calls]
        return AssistantMessage(
            content=content if content or not calls else None,
            reasoning_content=reasoning or UNSET,
            tool_calls=calls or UNSET,
        )

    def finish_reason(self, reason: FinishReason) -> ChatFinishReason:
        """An answer that ended by itself and made calls waits for their results."""
        return "tool_calls" if self._calls and reason == "stop" else reason

    def _read_calls(self, events: Sequence[Event]) -> list[ToolCallDelta]:
        deltas: dict[int, ToolCallDelta] = {}
        for event in events:
            if isinstance(event, CallStart):
                assert self._format is not None
                call = _Call(id=new_call_id(self._format), name=event.name)
                self._calls.append(call)
                started = FunctionCallDelta(name=call.name)
                deltas[event.index] = ToolCallDelta(event.index, started, id=call.id, type="function")
            elif isinstance(event, Arguments):
                self._calls[event.index].pieces.append(event.text)
                known = deltas.get(event.index) or ToolCallDelta(event.index, FunctionCallDelta())
                function = FunctionCallDelta(known.function.name, known.function.arguments + event.text)
                deltas[event.index] = ToolCallDelta(event.index, function, id=known.id, type=known.type)
        return list(deltas.values())


class _Call:
    def __init__(self, *, id: str, name: str) -> None:
        self.id, self.name = id, name
        self.pieces: list[str] = []


def new_call_id(format: ToolFormat) -> str:
    """An id that no other call has, in the form that the model's template takes."""
    return format.id_prefix + uuid.uuid4().hex[: format.num_id_characters]

"""What a chat template writes between two messages' contents, found by rendering it around marks.

A program says its turns one after the other and must never go back, so of a template only what stands before a content
matters: from the end of the content before it (closing that turn) to its own beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

from phloem.core.errors import InvalidRequest
from phloem.lang.ir import Role
from phloem.serve.text.chat import ChatTemplate

LEFT, RIGHT = "\ufdd2", "\ufdd3"  # noncharacters, which no template writes


class TurnPieces:
    """The text that opens a turn, for every sequence of roles before it."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._known: dict[tuple[Role, ...], str] = {}

    def opening(self, roles: tuple[Role, ...]) -> str:
        """What stands before the content of the last of `roles`; closes the turn before it. InvalidRequest when the
        template refuses these roles in this order, or drops a content."""
        if roles not in self._known:
            self._known[roles] = self._find(roles)
        return self._known[roles]

    def _find(self, roles: tuple[Role, ...]) -> str:
        *before, role = roles
        if role == "assistant" and before:  # as the model is asked to begin one
            rendered = self._template.render(_messages(before), add_generation_prompt=True)
            return _after(rendered, len(before) - 1)
        rendered = self._template.render(_messages(roles), add_generation_prompt=False)
        head, mark, _ = rendered.partition(_mark(len(before)))
        if not mark:
            raise _dropped(role)
        return _after(head, len(before) - 1) if before else head


def _messages(roles: Sequence[Role]) -> list[dict[str, str]]:
    return [{"role": role, "content": _mark(index)} for index, role in enumerate(roles)]


def _mark(index: int) -> str:
    return f"{LEFT}{index}{RIGHT}"


def _after(rendered: str, index: int) -> str:
    _, mark, rest = rendered.rpartition(_mark(index))
    if not mark:
        raise _dropped("earlier")
    return rest


def _dropped(role: str) -> InvalidRequest:
    message = f"the model's chat template does not write the {role} turn: use turns in another order"
    return InvalidRequest(message, field="program")

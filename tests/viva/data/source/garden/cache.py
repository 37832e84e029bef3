"""The shed keeps tools; a tool is taken and given back."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tool:
    size: int
    uses: int = 0
    tags: list[str] = field(default_factory=list)


class Shed:
    __slots__ = ("free", "num_taken")

    def __init__(self, sizes: list[int]) -> None:
        self.free: list[Tool] = [Tool(size) for size in sizes]
        self.num_taken = 0

    def take(self, size: int) -> Tool:
        for tool in self.free:
            if tool.size >= size:
                self.free.remove(tool)
                self.num_taken += 1
                return tool
        raise LookupError(f"no tool of size {size}")

    def give_back(self, tool: Tool) -> None:
        tool.uses += 1
        self.num_taken -= 1
        self.free.append(tool)

    def sort(self) -> None:
        self.free.sort(key=lambda tool: tool.size)

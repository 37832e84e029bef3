"""What all workers share."""

from __future__ import annotations


class Worker:
    """Somebody with an inbox."""

    name: str

    def __init__(self, name: str) -> None:
        self.name = name
        self.inbox: list[str] = []

    def poll(self) -> list[str]:
        taken, self.inbox = self.inbox, []
        return taken

    def rest(self) -> None:
        self.inbox.clear()

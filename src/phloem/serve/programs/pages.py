"""Admission by memory: programs that need more pages at least than there are do not run at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from phloem.core.errors import Overloaded


class PromisedPages:
    """Counts the pages that open programs need at least, by their static bounds."""

    def __init__(self) -> None:
        self._num_promised = 0

    @contextmanager
    def promise(self, num_wanted: int, *, num_pages: int | None) -> Iterator[None]:
        """Hold so many of `num_pages` (None: nobody knows yet). Raises Overloaded; who is alone may have any number."""
        if self._num_promised and num_pages is not None and self._num_promised + num_wanted > num_pages:
            message = (
                f"programs that are open need {self._num_promised} of {num_pages} pages, this one {num_wanted} more"
            )
            raise Overloaded(f"{message}; try again later", retry_after_s=1)
        self._num_promised += num_wanted
        try:
            yield
        finally:
            self._num_promised -= num_wanted

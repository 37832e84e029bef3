"""Indexing with a progress bar, for commands."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from viva.index.build import Indexed, build_index
from viva.index.corpus import Corpus


def build_with_bar(corpus: Corpus, *, cache: Path) -> Indexed:
    """`build_index`, with a bar on standard error while files are read."""
    columns = (TextColumn("indexing {task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(corpus.name, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return build_index(corpus, cache=cache, progress=show)

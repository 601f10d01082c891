"""Progress on a terminal; nothing at all when standard error is piped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["counting"]


class Show(Protocol):
    """Shows how many are done, and of how many where that is known."""

    def __call__(self, done: int, total: int | None = None, /) -> None: ...


@contextmanager
def counting(what: str) -> Iterator[Show]:
    """Yields a function to call with the number done so far."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)

        def show(done: int, total: int | None = None, /) -> None:
            progress.update(task, completed=done, total=total)

        yield show

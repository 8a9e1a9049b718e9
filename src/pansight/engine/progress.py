"""Progress on the terminal: a live bar for people, and single lines for log files."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


def clock(seconds: float) -> str:
    """75 → "1:15", 4000 → "1:06:40"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressBar:
    """On stderr: a bar where that is a terminal, else a line every `every` seconds; nothing where not `shown`.

    with ProgressBar("train") as bar:
        bar.update(0.25, "step 100/400, loss 0.512")
    """

    def __init__(self, label: str, shown: bool = True, every: float = 10.0):
        self.label, self.shown, self.every = label, shown, every
        self.console = Console(stderr=True)
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._start = self._said = self._drawn = time.monotonic()
        self._first_share: float | None = None

    def __enter__(self) -> Self:
        if self.shown and self.console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
            self._live = Progress(*columns, console=self.console, transient=True)
            self._task = self._live.add_task(self.label, total=1.0, text="")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, share: float, text: str) -> None:
        """share: how much of the job is done, 0 … 1; the time left is estimated from it."""
        now = time.monotonic()
        if not self.shown or (now - self._drawn < 0.1 and share < 1):
            return
        self._drawn = now
        if self._first_share is None:  # in a resumed run, another process did the first part
            self._first_share, self._start = share, now
        done = share - self._first_share
        left = f", {clock((now - self._start) * (1 - share) / done)} left" if done > 0 and share < 1 else ""
        if self._live is not None:
            self._live.update(self._task, completed=share, text=text + left)
        elif now - self._said >= self.every:
            self._said = now
            print(f"{self.label}: {text}{left}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)

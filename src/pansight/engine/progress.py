"""What every long job has: progress on the terminal, and a clean end by Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import MethodType, TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from pansight.errors import Interrupted
from pansight.errors import shown as escaped


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
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}", markup=False)
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
        self._drawn, text = now, escaped(text)
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
        """A line of its own, above the bar; names from files may stand in it."""
        text = escaped(text)
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)


class Pace:
    """How many images a second are done, from the first one on: what came before was no work on images."""

    def __init__(self) -> None:
        self._start, self._done = time.monotonic(), 0

    def after_one(self) -> str:
        """ "57 images/s", one more being done."""
        now = time.monotonic()
        self._start, self._done = self._start if self._done else now, self._done + 1
        return f"{(self._done - 1) / max(now - self._start, 1e-9):.0f} images/s"


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether Ctrl-C or SIGTERM asked a job to stop: `number` is that of the signal, 0 as long as there was none.

    at_hand: what is finished before ("step", "image"); "": nothing, the signal raises Interrupted wherever the job is.
    shown: whether the user is told that the signal was heard.
    """

    def __init__(self, at_hand: str, shown: bool):
        self.at_hand, self.shown, self.number = at_hand, shown, 0
        self._process = os.getpid()

    def is_set(self) -> bool:
        return self.number != 0

    def hear(self, number: int, frame: object) -> None:
        """The handler of the signals."""
        if os.getpid() != self._process:  # a worker that was forked with the handler: it ends with its parent
            return
        if self.number:
            raise Interrupted("stopped at once: what was not saved yet is lost", number, at_once=True)
        if not self.at_hand:
            raise Interrupted(number=number)
        self.number = number
        if self.shown:
            _say_in_a_handler(f"stopping after the {self.at_hand} at hand; again to stop at once")


def _say_in_a_handler(text: str) -> None:
    """A line on stderr, on a terminal below the ^C; the handler may have interrupted the printing of another one."""
    with suppress(OSError, ValueError):  # stderr may be closed
        try:
            print("\n" * sys.stderr.isatty() + text, file=sys.stderr, flush=True)
        except RuntimeError:  # what Python says of two prints at once
            os.write(2, f"{text}\n".encode())


@contextmanager
def stop_signal(at_hand: str = "", shown: bool = True) -> Iterator[Stop]:
    """Inside, Ctrl-C and SIGTERM set a `Stop`, so that what is at hand can be finished; the second one stops at once.

    Without `at_hand` the first one raises Interrupted at once. One inside another knows of a signal that the outer one
    has heard, and tells it of its own. In a thread that is not the main one nothing is heard.
    """
    stop = Stop(at_hand, shown)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    outer = [handler.__self__ for handler in before.values() if isinstance(handler, MethodType)]
    outer = [each for each in outer if isinstance(each, Stop)]
    try:
        for number in SIGNALS:
            signal.signal(number, stop.hear)
        stop.number = max((each.number for each in outer), default=0)
        if stop.number and not at_hand:
            raise Interrupted(number=stop.number)
        yield stop
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: a handler that Python did not install and cannot put back
                signal.signal(number, handler)
        for each in outer:
            each.number = each.number or stop.number

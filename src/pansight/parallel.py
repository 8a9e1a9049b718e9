"""Work on all cores: in order by threads, since decoders, encoders and loops over arrays let go of Python's lock; or in
any order by copies of this process (forks), where that lock would be what everyone waits for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from pansight.errors import PansightError

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def workers(jobs: int) -> int:
    """`jobs`, or as many as there are cores where it is 0. Raises PansightError where it is negative."""
    if jobs < 0:
        raise PansightError(where="jobs", expected="0 (all cores) or a number of images at a time", found=jobs)
    return jobs or cores()


def in_order(function: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Generator[Result]:
    """The results of `function` in the order of `items`, up to twice `jobs` ahead of the one that is asked for.

    jobs: so many items at a time, as for `workers`; with 1 all is done in this thread. What `function` raises is raised
    where the turn of its item comes; then, and when the iterator is closed, no further item is begun.
    """
    count = workers(jobs)
    if count == 1:
        yield from map(function, items)
        return
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 2 * count:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def can_fork() -> bool:
    """Whether `in_forks` works here: on Linux, but not inside of a process that must have no children."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def in_forks(
    work: Callable[[Iterator[int]], Result], count: int, processes: int, each: Callable[[int], None] | None = None
) -> list[Result]:
    """What `work` gives in each of `processes` copies of this process, which share the numbers 0 … count − 1.

    work: gets an iterator of numbers, the next one whenever it asks, and returns what can be pickled. each: called in
    this process with every number that is done. The copies have all that is in memory here, without its being sent.
    Of several errors, that of the lowest number is raised. Raises PansightError where a copy is killed.
    """
    context = multiprocessing.get_context("fork")
    ends: list[Connection] = []
    copies: list[Any] = []
    try:
        for _ in range(processes):
            here, there = context.Pipe()
            ends.append(here)
            copy = context.Process(target=_copy, args=(work, ends, there), daemon=True)
            with warnings.catch_warnings():  # Python 3.12 warns of threads; ours hold no lock that a copy needs
                warnings.simplefilter("ignore", DeprecationWarning)
                copy.start()
            there.close()
            copies.append(copy)
        return _share_out(ends, count, each)
    finally:
        for copy in copies:
            copy.terminate()
        for copy in copies:
            copy.join()
        for end in ends:
            end.close()


def _copy(work: Callable[[Iterator[int]], Any], ends: list[Connection], mine: Connection) -> None:
    """What a copy does: asks for numbers (sending None) until it gets none; then sends (number, result, error)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all at once: the first process stops the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for end in ends:  # else nobody would notice the end of the first process
        end.close()
    number: int | None = None

    def numbers() -> Iterator[int]:
        nonlocal number
        while True:
            mine.send(None)
            number = mine.recv()
            if number is None:
                return
            yield number

    try:
        said = (number, work(numbers()), None)
    except Exception as error:
        said = (number, None, error)
    with suppress(OSError):  # nobody is left to be told
        mine.send(said)


def _share_out(ends: list[Connection], count: int, each: Callable[[int], None] | None) -> list[Any]:
    results: list[Any] = []
    errors: list[tuple[int, Exception]] = []
    ahead = 0
    working: dict[Connection, int | None] = dict.fromkeys(ends)  # the number that each copy was given last
    while working:
        for end in wait(list(working)):
            assert isinstance(end, Connection)
            try:
                said = end.recv()
            except (EOFError, OSError) as error:
                where, found = "a process that shared the work", "its end (killed, or out of memory)"
                raise PansightError(where=where, expected="its result", found=found) from error
            if said is not None:
                number, result, error = said
                del working[end]
                results.append(result)
                if error is not None:  # lower numbers are under way already, no others are given out
                    errors.append((count if number is None else number, error))
                continue
            done = working[end]
            if done is not None and each is not None:
                each(done)
            working[end] = ahead if ahead < count and not errors else None
            end.send(working[end])
            ahead += 1
    if errors:
        raise min(errors, key=lambda pair: pair[0])[1]
    return results

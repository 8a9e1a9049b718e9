"""Work on all cores, in order: by threads, since decoders, encoders and loops over arrays let go of Python's lock."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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

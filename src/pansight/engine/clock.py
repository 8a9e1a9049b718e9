"""The time of a training: how far the run is, what its schedule has due, and whether it has the processor to itself.

A run ends after a number of steps, after a time, or by whichever comes first; its schedule goes by the measure that is
ahead. Where the time alone is given, the run is one by the clock: what is left open is a share of the time.

The functions are pure but for `demand_now`; `Stopwatch` and `BusyMachine` look at a clock that may be handed in.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from pansight.config import TrainConfig
from pansight.errors import PansightError

WARMUP = 0.05
"""The share of the time that warm-up takes where its steps are not given, or are too many for the time."""
EVALUATIONS = 5
"""So many evaluations a run has where their distance is left open, the one at its end included."""
EVALUATE_SHARE = 0.2
"""Of the time of training, for evaluations whose distance is left open."""


def by_the_clock(config: TrainConfig) -> bool:
    """Whether the time alone says when the run ends."""
    return config.max_minutes > 0 and not config.steps


def steps_of_epochs(config: TrainConfig, images: int) -> int:
    """The steps after which each of `images` training images was seen `config.epochs` times, the last step filled up.

    Raises PansightError where other steps are given besides.
    """
    steps = max(1, math.ceil(round(images * config.epochs / config.batch_size, 6)))
    if config.steps not in (0, steps):
        raise PansightError(
            where="train.epochs",
            expected="epochs or steps",
            found=f"{config.epochs:g} epochs, which are {steps} steps of {config.batch_size} images, and "
            f"{config.steps} steps",
            hint="--train.steps 0 leaves it to the epochs, --train.epochs 0 to the steps",
        )
    return steps


def progress_of(config: TrainConfig, step: int, seconds: float) -> float:
    """The share of the run that is over after `step` steps and `seconds` of training, by steps or by the clock,
    whichever is ahead; 1 or more at its end.
    """
    by_steps = step / config.steps if config.steps else 0.0
    return max(by_steps, seconds / (60 * config.max_minutes)) if config.max_minutes else by_steps


def position(config: TrainConfig, step: int, progress: float) -> float:
    """Where in its steps a run stands: `step`, or, where the clock is ahead, that share of all its steps."""
    ahead = config.steps > 0 and progress > step / config.steps
    return progress * config.steps if ahead else step


class Warmup(NamedTuple):
    """A place in a run and the warm-up around it, in steps or in shares of the run."""

    at: float
    start: float
    length: float

    @property
    def done(self) -> float:
        """How much of it is over: below 0 before it starts, 1 or more after it."""
        if self.length:
            return (self.at - self.start) / self.length
        return math.copysign(math.inf, self.at - self.start)


def warmup_at(config: TrainConfig, step: int, progress: float, backbone: bool = False) -> Warmup:
    """Warm-up by steps, or where the time is limited by the clock, whichever is ahead.

    By the clock, a number of steps is its share of all steps, but at least a twentieth of the time: so a warm-up that
    was meant for more steps than the time allows is over in good time, and one that is shorter keeps its steps.
    backbone: that of the backbone, which differs where `backbone_delay` is given.
    """
    start, length = config.backbone_delay if backbone and config.backbone_delay else (0, config.warmup_steps)
    if length == -1:  # left open
        return Warmup(progress, 0.0, WARMUP if by_the_clock(config) else 0.0)
    by_steps = Warmup(step, start, length)
    if not config.max_minutes:
        return by_steps
    shares = [max(steps / (config.steps or math.inf), WARMUP) if steps else 0.0 for steps in (start, length)]
    return max(by_steps, Warmup(progress, *shares), key=lambda each: each.done)


def evaluations_due(config: TrainConfig, step: int, progress: float) -> int:
    """How many evaluations the schedule has had until now, which rises by one where another falls due."""
    if config.evaluate_every == -1:
        return int(EVALUATIONS * progress + 1e-9)
    return int(position(config, step, progress) // config.evaluate_every) if config.evaluate_every else 0


def may_evaluate(share: float, training: float, evaluations: float, expected: float) -> bool:
    """Whether evaluations stay within `share` of the time of training (0: of any length) with one more.

    training, evaluations: seconds so far. expected: seconds that the next one takes.
    """
    return not share or evaluations + expected <= share * training


class Stopwatch:
    """Seconds of training: it stands still during evaluations, and goes on where an earlier session stopped."""

    def __init__(self, seconds: float = 0.0, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._start = now() - seconds

    def seconds(self) -> float:
        return self._now() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self._start += self._now() - start


# --- a processor that is shared with other programs ------------------------------------------------------------------

BUSY = 0.3
"""From this share of waiting on, the machine is called busy."""


class Demand(NamedTuple):
    """What this process has wanted of the processor since it began, in seconds of all its threads together."""

    computed: float
    waited: float | None
    """Ready to compute, but without a core; None where the system does not count it."""
    load: float
    """How many threads of the whole machine compute or wait for a core, on average; 0 where the system does not say."""


def waiting_share(before: Demand, after: Demand, cores: int, threads: int) -> float:
    """The share of the time in which this process wanted to compute that it waited for a core, 0 … 1.

    Where waiting is not counted it is estimated from the load: of more threads than cores, each gets its part. A load
    that this process makes by its own `threads` does not count.
    """
    if before.waited is not None and after.waited is not None:
        # threads that ended in between have taken their seconds with them
        computed, waited = max(after.computed - before.computed, 0.0), max(after.waited - before.waited, 0.0)
        return waited / max(computed + waited, 1e-9)
    others = after.load - threads
    return max(0.0, 1 - cores / after.load) if others > 0.5 else 0.0


def demand_now() -> Demand:
    """Of this process. Linux counts the waiting of each thread."""
    waited: float | None = None
    with suppress(OSError):
        tasks = list(Path("/proc/self/task").iterdir())
        waited = sum(map(_waited, tasks)) if Path("/proc/self/schedstat").is_file() else None
    load = 0.0
    with suppress(OSError, AttributeError):  # Windows has no load
        load = os.getloadavg()[0]
    return Demand(time.process_time(), waited, load)


def _waited(task: Path) -> float:
    """Seconds that a thread was ready and had no core; 0 for one that ends while it is asked."""
    with suppress(OSError, IndexError, ValueError):
        return int((task / "schedstat").read_text().split()[1]) / 1e9
    return 0.0


class BusyMachine:
    """Notices, once in a run, that other programs keep the processor busy. window: seconds that are looked at."""

    def __init__(
        self,
        read: Callable[[], Demand] = demand_now,
        now: Callable[[], float] = time.monotonic,
        window: float = 10.0,
    ):
        self._read, self._now, self._window = read, now, window
        self._since, self._before = now(), read()
        self._said = False

    def notice(self) -> str:
        """A line for the user, or ""; to be asked after every step."""
        if self._said or self._now() - self._since < self._window:
            return ""
        after, threads = self._read(), torch.get_num_threads()
        share = waiting_share(self._before, after, os.cpu_count() or 1, threads)
        self._since, self._before = self._now(), after
        if share < BUSY:
            return ""
        self._said = True
        fewer = "; it may be faster with fewer threads (OMP_NUM_THREADS=1)" if threads > 1 else ""
        waits = f"{100 * share:.0f} % of its time this training waits for a core"
        return f"other programs keep the processor busy: {waits}{fewer}"

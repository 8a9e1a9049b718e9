"""Run the trainings of a sweep, each as a process of its own, so many at a time as there are devices or jobs.

A training that fails does not stop the others. Ctrl-C and SIGTERM are handed on to all of them: each saves its state.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import torch

from pansight.apps.sweeping.grid import Run
from pansight.apps.sweeping.runs import folder_of, is_finished, last_line, log_of, progress
from pansight.engine.progress import ProgressBar, stop_signal
from pansight.errors import Interrupted

POLL = 0.2
"""Seconds between two looks at the processes."""
LOOK = 5.0
"""Seconds between two looks at how far the running trainings are."""
PATIENCE = 60.0
"""Seconds that a training which was stopped at once gets to end by itself."""


class Queue(Protocol):
    """Where the runs come from: a list, or a search that thinks of the next one."""

    total: int

    def take(self) -> Run | None:
        """The next run to start; None where there is none, be it for now or for good."""
        ...

    def ended(self, run: Run, failure: str) -> None:
        """A run has ended. failure: the last line of its log, "" where it is finished."""
        ...


class Listed:
    """A queue of given runs."""

    def __init__(self, runs: Sequence[Run]):
        self.total = len(runs)
        self._left = list(runs)

    def take(self) -> Run | None:
        return self._left.pop(0) if self._left else None

    def ended(self, run: Run, failure: str) -> None:
        """A list does not depend on how its runs end."""


LEFT_OUT = 1
"""The exit code of a training that ended well, without the images or annotations that it could not use."""


@dataclass
class Outcome:
    """How the runs of a sweep ended: names of those that were finished before, and now; and name → last line."""

    skipped: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # finished now, without images or annotations that are of no use

    def joined(self, other: Outcome) -> Outcome:
        """Both together."""
        return Outcome(
            self.skipped + other.skipped,
            self.finished + other.finished,
            self.failed | other.failed,
            self.left_out + other.left_out,
        )


@dataclass
class _Job:
    run: Run
    slot: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    told: bool = False  # that it is to stop


def run_all(
    queue: Queue,
    sweep: Path,
    jobs: int,
    words: Callable[[Run], list[str]],
    say: Callable[[str], None] = print,
) -> Outcome:
    """Run everything in the queue. words: the command of a run.

    Raises Interrupted after Ctrl-C or SIGTERM, when every running training has ended.
    """
    outcome, running = Outcome(), list[_Job]()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signal("step of every run"))
        bar = stack.enter_context(ProgressBar("sweep"))
        stack.callback(_end, running)
        looked = -LOOK
        while True:
            while not stop.is_set() and len(running) < jobs:
                run = queue.take()
                if run is None:
                    break
                if is_finished(folder_of(sweep, run)):
                    outcome.skipped.append(run.name)
                    queue.ended(run, "")
                    continue
                slot = min(set(range(jobs)) - {job.slot for job in running})
                running.append(_start(run, slot, jobs, sweep, words(run)))
                bar.say(f"started    {run.name}")
            if not running:
                break
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                _note(job, sweep, queue, outcome, bar.say)
            if stop.is_set():
                _hand_on(running)
            if time.monotonic() - looked >= LOOK:
                looked = time.monotonic()
                _show(bar, queue.total, outcome, running, sweep)
            time.sleep(POLL)
    if stop.is_set():
        done = len(outcome.skipped) + len(outcome.finished)
        text = f"interrupted: {done} of {queue.total} runs are finished; the same command goes on with the others"
        raise Interrupted(text, stop.number)
    if outcome.skipped:
        say(f"skipped    {len(outcome.skipped)} runs that were finished before")
    return outcome


def _start(run: Run, slot: int, jobs: int, sweep: Path, words: Sequence[str]) -> _Job:
    """The process of a run; what it prints goes into its log, after what an earlier session wrote there."""
    path = log_of(sweep, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("ab")
    log.write(f"$ {shlex.join(words)}\n".encode())
    log.flush()
    environment = os.environ | surroundings(slot, jobs, torch.cuda.device_count(), os.cpu_count() or 1, os.environ)
    # a group of its own: Ctrl-C in a terminal must reach the runs once, through this process
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    return _Job(run, slot, process, log)


def surroundings(slot: int, jobs: int, devices: int, cores: int, given: Mapping[str, str]) -> dict[str, str]:
    """What is added to the environment of the job in a slot: its device, and its share of the cores.

    given: the environment of the sweep, whose choice of devices and of threads stands.
    """
    added: dict[str, str] = {}
    if devices:
        names = [name for name in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        names = names or [str(number) for number in range(devices)]
        added["CUDA_VISIBLE_DEVICES"] = names[slot % len(names)]
    if jobs > 1 and "OMP_NUM_THREADS" not in given:
        added["OMP_NUM_THREADS"] = str(max(1, cores // jobs))
    return added


def _note(job: _Job, sweep: Path, queue: Queue, outcome: Outcome, say: Callable[[str], None]) -> None:
    """A process has ended: finished, or broken with a last line."""
    job.log.close()
    name, failure = job.run.name, ""
    if job.process.returncode not in (0, LEFT_OUT) or not is_finished(folder_of(sweep, job.run)):
        failure = last_line(log_of(sweep, job.run))
        if job.process.returncode < 0:  # by a signal: the program could not say anything of it
            failure = f"killed by {_signal_name(-job.process.returncode)}"
        outcome.failed[name] = failure
        say(f"failed     {name}: {failure}")
    else:
        outcome.finished.append(name)
        if job.process.returncode == LEFT_OUT:
            outcome.left_out.append(name)
        say(f"finished   {name}")
    queue.ended(job.run, failure)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _hand_on(running: Sequence[_Job]) -> None:
    """Tell every run that has not been told to stop; the second time it would lose what is not saved."""
    for job in running:
        if not job.told:
            job.told = True
            _stop(job.process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, which a training hears from its first moment on, unlike Ctrl-C, which a shell may have switched off."""
    with suppress(OSError):  # it has just ended
        process.terminate()


def _end(running: list[_Job]) -> None:
    """However a sweep ends, no run goes on without it: those that are left are stopped at once, and waited for."""
    for job in running:
        _stop(job.process)
    for job in running:
        try:
            job.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()
        job.log.close()


def _show(bar: ProgressBar, total: int, outcome: Outcome, running: Sequence[_Job], sweep: Path) -> None:
    """How much of the sweep is done, and where the running trainings are."""
    shares = [progress(folder_of(sweep, job.run)) for job in running]
    done = len(outcome.skipped) + len(outcome.finished) + len(outcome.failed)
    share = (done + sum(share for share, _ in shares)) / max(1, total)
    places = [f"{job.run.name} step {step}" for job, (_, step) in zip(running, shares)]
    failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
    bar.update(min(share, 1.0), f"{done}/{total} runs{failed}; " + ", ".join(places[:3]))

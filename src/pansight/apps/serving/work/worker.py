"""One model at work: photos of equal size that come at about the same time are seen by the network together.

One thread runs the network, another one decodes what came of it, so that the network sees the next photos meanwhile.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pansight.apps.serving.work.measures import Measures
from pansight.engine.predict import Look, Predictor, Prepared
from pansight.types import Prediction

DECODED_AHEAD = 2
"""Batches that the network may be ahead of the decoding, which bounds the memory."""


@dataclass(eq=False)
class _Job:
    photo: Prepared
    options: Mapping[str, Any]
    keep: bool  # the answer is the look itself
    key: Any
    came: float = field(default_factory=time.monotonic)
    future: Future[Any] = field(default_factory=Future)


class Worker:
    """The queue of one model, and its two threads. name: for the figures."""

    def __init__(self, name: str, predictor: Predictor, batch: int, wait: float, measures: Measures):
        """batch: photos at once, at most. wait: seconds for company."""
        self.name, self.predictor, self._batch, self._wait = name, predictor, batch, wait
        self._measures = measures
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._ahead = threading.Semaphore(DECODED_AHEAD)
        self._decoder = ThreadPoolExecutor(1, f"decode {name}")
        self._thread = threading.Thread(target=self._run, name=f"network {name}", daemon=True)
        self._thread.start()

    def predict(self, photo: Prepared, options: Mapping[str, Any]) -> Future[Prediction]:
        """options: of the decode, checked by the caller. A future that is cancelled before its turn costs nothing."""
        return self._add(_Job(photo, options, False, (photo.key, json.dumps(options, sort_keys=True))))

    def look(self, photo: Prepared) -> Future[Look]:
        """What the network says of a photo, which it sees alone."""
        return self._add(_Job(photo, {}, True, object()))

    def close(self, seconds: float = 30.0) -> None:
        """Finish what waits, then end the threads; give up waiting for them after so many seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(seconds)
        self._decoder.shutdown(wait=not self._thread.is_alive(), cancel_futures=False)

    def _add(self, job: _Job) -> Future[Any]:
        with self._changed:
            if self._closed:
                job.future.set_exception(RuntimeError("the server stops"))
            else:
                self._jobs.append(job)
                self._changed.notify_all()
        return job.future

    def _run(self) -> None:
        while group := self._next():
            jobs = [job for job in group if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._see(jobs)

    def _next(self) -> list[_Job]:
        """The jobs that the network takes next; [] at the end."""
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return []
                self._changed.wait()
            first = self._jobs[0]
            deadline = first.came + self._wait
            while not first.keep and len(self._alike(first)) < self._batch and not self._closed:
                if (left := deadline - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            group = self._alike(first)
            taken = set(map(id, group))
            self._jobs = deque(job for job in self._jobs if id(job) not in taken)
            return group

    def _alike(self, first: _Job) -> list[_Job]:
        return [job for job in self._jobs if job.key == first.key][: self._batch]

    def _see(self, jobs: list[_Job]) -> None:
        """Run the network on a batch, and have it decoded."""
        start = time.monotonic()
        for job in jobs:
            self._measures.stage.labels(self.name, "wait").observe(start - job.came)
        try:
            look = self.predictor.look_at([job.photo for job in jobs])
        except Exception as error:
            if len(jobs) > 1:  # too much for the memory at once, perhaps; each has its own answer
                for job in jobs:
                    self._see([job])
            else:
                jobs[0].future.set_exception(error)
            return
        self._measures.batch.labels(self.name).observe(len(jobs))
        self._measures.stage.labels(self.name, "network").observe(time.monotonic() - start)
        if jobs[0].keep:
            jobs[0].future.set_result(look)
            return
        self._ahead.acquire()
        self._decoder.submit(self._decode, look, jobs)

    def _decode(self, look: Look, jobs: list[_Job]) -> None:
        start = time.monotonic()
        try:
            for job, found in zip(jobs, look.decide(jobs[0].options), strict=True):
                job.future.set_result(found)
        except Exception as error:
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)
        finally:
            self._ahead.release()
            self._measures.stage.labels(self.name, "decode").observe(time.monotonic() - start)

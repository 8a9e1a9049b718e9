"""Scoring files: all metrics in one pass over the images, on all cores, and in parts that can be joined."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from pansight.errors import PansightError
from pansight.metrics.average_precision import AveragePrecision, objects_of_map
from pansight.metrics.files.pairs import Pair, PanopticPairs
from pansight.metrics.panoptic.boundary import BoundaryQuality
from pansight.metrics.panoptic.dagger import PanopticQualityDagger
from pansight.metrics.panoptic.errors import ErrorAnalysis, SegmentErrors
from pansight.metrics.panoptic.quality import PanopticQuality
from pansight.metrics.semantic_iou import SemanticIoU
from pansight.ops.maps.label_png import PairCounter
from pansight.parallel import can_fork, in_forks
from pansight.types import LabelSpace

CHUNK = 8
"""Images that a thread or process takes at a time."""

FORKED = 64
"""From so many images on, processes share them: a copy of this one takes as long as some images."""


@dataclass(frozen=True)
class Figures:
    """Which figures are computed beside PQ and mIoU, and how."""

    errors: bool = True
    """Error classes, gains and confusion."""
    boundary: bool = False
    """Boundary PQ and Boundary IoU: 20 times the time."""
    instances: bool | None = None
    """Mask and box AP of the thing segments, by their scores; None: where a prediction has scores."""
    convention: str = "cityscapes"
    """Of mIoU."""
    max_detections: int = 100


class Scores:
    """All figures of some images; `merge` adds those of others, `record` gives what stands in evaluation.json."""

    def __init__(self, labels: LabelSpace, figures: Figures):
        self.labels, self.figures = labels, figures
        self.panoptic = PanopticQuality(labels)
        self.semantic = SemanticIoU(labels, figures.convention)
        self.dagger = PanopticQualityDagger(labels)
        self.errors = ErrorAnalysis(labels) if figures.errors else None
        self.boundary = BoundaryQuality(labels) if figures.boundary else None
        self.instances = AveragePrecision(labels, figures.max_detections) if figures.instances else None
        self.stale_areas = 0

    def add(self, pair: Pair) -> SegmentErrors | None:
        """Add an image; gives the error class of each segment where they are asked for."""
        rows = self.panoptic.add(pair.image_id, pair.match)
        self.semantic.add(pair.image_id, pair.match)
        self.dagger.update(pair.match, rows)
        self.stale_areas += pair.stale_areas
        errors = None if self.errors is None else self.errors.update(pair.match)
        if pair.truth_ids is not None and pair.prediction_ids is not None:
            if self.boundary is not None:
                self.boundary.update(pair.truth_ids, pair.prediction_ids, pair.match)
            if self.instances is not None:
                truth = objects_of_map(pair.truth_ids, pair.match.truth, self.labels)
                found = objects_of_map(pair.prediction_ids, pair.match.prediction, self.labels)
                self.instances.add(pair.image_id, pair.size, truth, found)
        return errors

    def _parts(self) -> dict[str, Any]:
        parts = {
            name: vars(self)[name] for name in ("panoptic", "semantic", "dagger", "errors", "boundary", "instances")
        }
        return {name: metric for name, metric in parts.items() if metric is not None}

    def merge(self, other: Scores) -> None:
        """Add the figures of other images. Raises PansightError for other classes or another choice of figures."""
        if other.figures != self.figures:
            raise PansightError(where="scores", expected="the same figures on both sides", found=other.figures)
        theirs = other._parts()
        for name, metric in self._parts().items():
            metric.merge(theirs[name])
        self.stale_areas += other.stale_areas

    def record(self) -> dict[str, Any]:
        """The content of evaluation.json: All, Things, Stuff, per_class, images, counts of PanopticQuality; `semantic`,
        `pq_dagger`; `errors`, `confusion` of ErrorAnalysis; `boundary`; `instances` and `without_overlaps`.
        """
        record = self.panoptic.compute()
        if not record:
            raise PansightError(where="evaluation", expected="at least one image", found="none")
        record["semantic"] = self.semantic.compute()
        record["pq_dagger"] = self.dagger.compute()
        if self.errors is not None:
            record |= self.errors.compute()
        if self.boundary is not None:
            record["boundary"] = self.boundary.compute()
        if self.instances is not None:
            record["instances"] = self.instances.compute()
            # the objects are the things of panoptic maps, so this is AP without overlaps, which has a key of its own
            figures = record["instances"]
            record["without_overlaps"] = {kind: figures[kind] for kind in ("box", "mask") if kind in figures}
        record["stale_areas"] = self.stale_areas
        return record

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as plain JSON values."""
        parts = {name: metric.state_dict() for name, metric in self._parts().items()}
        labels = [{**c._asdict(), "color": list(c.color)} for c in self.labels]
        return {"labels": labels, "figures": asdict(self.figures), "stale_areas": self.stale_areas, "parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by a `state_dict` of the same classes and figures."""
        for name, metric in self._parts().items():
            metric.load_state_dict(state["parts"][name])
        self.stale_areas = int(state["stale_areas"])


class Scored(NamedTuple):
    """An image and its error classes, for those who look at each one."""

    pair: Pair
    errors: SegmentErrors | None


def score(
    pairs: PanopticPairs,
    figures: Figures,
    indices: Sequence[int] | None = None,
    threads: int = 1,
    keep_maps: bool = False,
    each: Callable[[Scored], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """All figures of the images at `indices` (all of them unless given). Memory does not grow with their number.

    each: called with every image in order, in this thread; its maps are there with keep_maps. progress: called with the
    number of images done. The figures are the same for any number of threads. Without `each`, processes stand for them
    where they are faster.
    """
    if figures.instances is None:
        figures = replace(figures, instances=pairs.prediction.has_scores)
    order = range(len(pairs)) if indices is None else indices
    size = 1 if keep_maps else CHUNK  # maps wait for their turn in memory
    chunks = [order[at : at + size] for at in range(0, len(order), size)]
    maps = keep_maps or figures.boundary or bool(figures.instances)
    n_workers = max(1, min(threads, len(chunks)))
    workers = [_Worker(pairs, figures, maps, keep_maps, each is not None, len(order)) for _ in range(n_workers)]
    if n_workers > 1 and each is None and len(order) >= FORKED and can_fork():
        return _score_in_forks(workers, chunks, progress)
    done = 0
    for results, count in _run(workers, chunks):
        done += count
        if each is not None:
            for scored in results:
                each(scored)
        if progress is not None:
            progress(done)
    scores = workers[0].scores
    for worker in workers[1:]:
        scores.merge(worker.scores)
    return scores


class _Worker:
    """What a thread keeps: the memory to read with, and its share of the figures. count: of all images."""

    def __init__(self, pairs: PanopticPairs, figures: Figures, maps: bool, keep_maps: bool, keep: bool, count: int):
        self.pairs, self.maps, self.keep_maps, self.keep = pairs, maps, keep_maps, keep
        self.scores = Scores(pairs.truth.labels, figures)
        self.counter = PairCounter(count)

    def run(self, chunk: Sequence[int]) -> tuple[list[Scored], int]:
        kept: list[Scored] = []
        for index in chunk:
            pair = self.pairs.read(index, self.counter, self.maps)
            errors = self.scores.add(pair)
            if self.keep:
                kept.append(
                    Scored(pair if self.keep_maps else pair._replace(truth_ids=None, prediction_ids=None), errors)
                )
        return kept, len(chunk)


def _score_in_forks(
    workers: list[_Worker], chunks: list[Sequence[int]], progress: Callable[[int], None] | None
) -> Scores:
    """The figures of all chunks, of which as many processes as there are workers take one after the other."""
    first, done = workers[0], 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done)

    def share(numbers: Iterator[int]) -> Scores:
        for number in numbers:
            workers[1].run(chunks[number + 1])
        return workers[1].scores

    tell(first.run(chunks[0])[1])  # here, so that compiled code is loaded once for all
    for scores in in_forks(share, len(chunks) - 1, len(workers), lambda number: tell(len(chunks[number + 1]))):
        first.scores.merge(scores)
    return first.scores


def _run(workers: list[_Worker], chunks: list[Sequence[int]]) -> Iterator[tuple[list[Scored], int]]:
    """The results of all chunks in order; few are under way at a time, so that results cannot pile up."""
    if len(workers) == 1:
        yield from map(workers[0].run, chunks)
        return
    free: deque[_Worker] = deque(workers)

    def take(chunk: Sequence[int]) -> tuple[list[Scored], int]:
        worker = free.popleft()  # as many threads as workers: one is always free
        try:
            return worker.run(chunk)
        finally:
            free.append(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        running: deque[Future[tuple[list[Scored], int]]] = deque()
        try:
            for chunk in chunks:
                running.append(pool.submit(take, chunk))
                if len(running) > 2 * len(workers):
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def shard_of(count: int, part: int, parts: int) -> range:
    """The images of part `part` (from 1) of `parts`: contiguous, sizes differing by one at most."""
    if not 1 <= part <= parts:
        raise PansightError(where="shard", expected=f"a part between 1 and {parts}", found=f"{part}/{parts}")
    return range(count * (part - 1) // parts, count * part // parts)

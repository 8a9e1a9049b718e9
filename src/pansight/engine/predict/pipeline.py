"""Many photos, predicted while the next ones are read: three stages at work at the same time, in order.

Threads read and resize photos, one thread runs the network, and whoever iterates decodes what came of it, draws and
writes. Libraries compute without Python's lock, so that none of them waits for another. Each stage is a few photos
ahead of the next one and no more, which bounds the memory. The network sees the very tensors that it sees of a photo
alone, so that with a batch size of 1 every bit of a prediction is the same.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pansight.data.dataset import image_tensor
from pansight.data.loader import View, Views
from pansight.engine.infer import Inference, run_views, views_maker
from pansight.errors import PansightError
from pansight.interop.photo import PhotoPrediction
from pansight.types import LabelSpace, Prediction

Item = TypeVar("Item")
In = TypeVar("In")
Out = TypeVar("Out")

READERS = 2
"""Threads that read; one keeps up with a network on a CPU, two with one on an accelerator and photos of a camera."""
LOOK_AHEAD = 4
"""So many batches are read ahead at most in search of photos of equal size."""


class Shown(NamedTuple):
    """A photo, uint8 RGB (H, W, 3), and regions that may hold an object, as ``Sample.proposals`` has them."""

    photo: NDArray[np.uint8]
    proposals: Tensor | None = None


@dataclass(frozen=True)
class Result(Generic[Item]):
    """What came of one item: its prediction, or the error of one that cannot be read.

    seconds: that network and decoding took; of a photo in a batch its share.
    """

    item: Item
    found: PhotoPrediction | PansightError
    seconds: float = 0.0


class _Read(NamedTuple):
    number: int
    item: Any
    shown: Shown | PansightError
    views: Views  # () of an error


class _Seen(NamedTuple):
    """Photos that the network has seen. decode: gives the predictions, one for each."""

    reads: list[_Read]
    decode: Callable[[], list[Prediction]]
    seconds: float


def predict_stream(
    model: Any,
    items: Iterable[Item],
    read: Callable[[Item], Shown | PansightError],
    settings: Inference,
) -> Generator[Result[Item]]:
    """A result for each item, in order; ``settings.batch_size`` photos of equal network size are predicted at once.

    model: as `infer.prepare` leaves it. read: called by other threads; an error that it returns is passed on in place
    of a prediction, one that it raises is raised here when the turn of its item comes. Close the iterator where it is
    left early: the network finishes what it has at hand, and all threads end.
    """
    make = views_maker(model, settings)

    def load(numbered: tuple[int, Item]) -> _Read:
        number, item = numbered
        shown = read(item)
        return _Read(number, item, shown, () if isinstance(shown, PansightError) else make([image_tensor(shown.photo)]))

    def see(reads: list[_Read]) -> _Seen:
        start = time.perf_counter()
        photos = [each.shown for each in reads if isinstance(each.shown, Shown)]
        if not photos:  # an unreadable one comes alone
            return _Seen(reads, list, 0.0)
        sizes = [(each.photo.shape[0], each.photo.shape[1]) for each in photos]
        regions = [each.proposals for each in photos]
        decode = run_views(model, batched([each.views for each in reads]), sizes, settings, regions)
        return _Seen(reads, decode, time.perf_counter() - start)

    readers = min(READERS, os.cpu_count() or 1)
    loaded = mapped(load, enumerate(items), readers, ahead=max(settings.batch_size, readers))
    with closing(loaded), closing(mapped(see, equal_sizes(loaded, settings.batch_size))) as batches:
        yield from _in_order(result for seen in batches for result in _results(seen, model.labels))


def mapped(work: Callable[[In], Out], items: Iterable[In], threads: int = 1, ahead: int = 1) -> Generator[Out]:
    """work(item) of each item in order, computed by `threads` threads, `ahead` items before they are asked for.

    Items are taken by the thread that iterates. An exception of `items` or of `work` is raised where the turn of its
    item comes. When the iterator is closed, what is being computed is finished and the rest is dropped.
    """
    waiting: deque[Future[Out]] = deque()
    source = iter(items)
    more = True
    with ThreadPoolExecutor(threads) as pool:
        try:
            while more or waiting:
                while more and len(waiting) <= ahead:
                    try:
                        waiting.append(pool.submit(work, next(source)))
                    except StopIteration:
                        more = False
                    except Exception as error:
                        waiting.append(_failed(error))
                        more = False
                if waiting:
                    yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def equal_sizes(reads: Iterable[_Read], batch_size: int) -> Iterator[list[_Read]]:
    """Batches of photos whose views are equally large, at most `batch_size` each; what cannot be read comes alone.

    Photos wait until their batch is full, `LOOK_AHEAD` batches at most.
    """
    waiting: dict[Any, list[_Read]] = {}  # by the sizes of views; the batch that waits longest stands first
    for read in reads:
        if isinstance(read.shown, PansightError):
            yield [read]
            continue
        key = tuple(view.images.shape for view in read.views), read.views[0].images.dtype
        waiting.setdefault(key, []).append(read)
        if len(waiting[key]) == batch_size:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) >= LOOK_AHEAD * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def batched(each: Sequence[Views]) -> Views:
    """The views of several photos, equally large, as those of a batch."""
    if len(each) == 1:
        return each[0]
    return tuple(
        View(torch.cat([view.images for view in same]), torch.cat([view.valid for view in same]), same[0].mirrored)
        for same in zip(*each, strict=True)
    )


def _results(seen: _Seen, labels: LabelSpace) -> Iterator[tuple[int, Result[Any]]]:
    start = time.perf_counter()
    predictions = iter(seen.decode())
    seconds = (seen.seconds + time.perf_counter() - start) / len(seen.reads)
    for number, item, shown, _ in seen.reads:
        if isinstance(shown, PansightError):
            yield number, Result(item, shown)
        else:
            each = next(predictions)
            found = PhotoPrediction(each.panoptic, each.semantic, each.instances, photo=shown.photo, labels=labels)
            yield number, Result(item, found, seconds)


def _in_order(numbered: Iterable[tuple[int, Result[Item]]]) -> Iterator[Result[Item]]:
    """The results from number 0 on; those that come early wait."""
    early: dict[int, Result[Item]] = {}
    due = 0
    for number, result in numbered:
        early[number] = result
        while due in early:
            yield early.pop(due)
            due += 1

"""From samples to batches: padded uint8 images in channels_last memory, the same for any number of workers.

A training batch is a pure function of (seed, step, rank): the order of an epoch is a permutation drawn from
(seed, epoch), and the augmentation of a sample is drawn from (seed, its position in the stream). So a run resumes at
any step without any state of the loader, and the ranks of a distributed run share out one and the same global batch.
All of this holds where images of rare classes are shown more often, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pansight.data.dataset import Dataset
from pansight.data.transforms import Transform
from pansight.errors import PansightError
from pansight.types import Batch, Instances, PanopticSegmentation, Sample

ORDER, AUGMENTATION = 0, 1  # the streams of random numbers that a seed is split into


def collate(samples: Sequence[Sample], divisor: int = 32) -> Batch:
    """Samples → one Batch, images padded right and bottom with zeros to the next multiples of `divisor` px.

    Images have channels_last memory, so the copy of each is a copy of rows; they are float32 where a sample is. Truths
    are passed on, not copied.
    """
    if not samples:
        raise PansightError(where="collate", expected="at least one sample", found="none")
    return Batch(
        *pad_images([s.image for s in samples], divisor),
        tuple(s.size for s in samples),
        tuple(s.truth for s in samples),
        tuple(s.image_id for s in samples),
        tuple(s.instances for s in samples),
        tuple(s.proposals for s in samples),
    )


def pad_images(images: Sequence[Tensor], divisor: int) -> tuple[Tensor, Tensor]:
    """Photos (3, h, w) → (images (B, 3, H, W), valid bool (B, H, W), False on padding), as `collate` has them.

    uint8, or float32 0 … 255 where a photo is (the filter "plain" of ops/resize.py makes such).
    """
    heights, widths = [i.shape[1] for i in images], [i.shape[2] for i in images]
    height, width = (-(-max(sides) // divisor) * divisor for sides in (heights, widths))
    whole = all(h == height for h in heights) and all(w == width for w in widths)
    # (B, H, W, 3) in memory; every byte is written below unless there is padding
    dtype = torch.float32 if any(i.dtype == torch.float32 for i in images) else torch.uint8
    memory = (torch.empty if whole else torch.zeros)((len(images), height, width, 3), dtype=dtype)
    valid = torch.full((len(images), height, width), whole)
    for b, (image, h, w) in enumerate(zip(images, heights, widths)):
        memory[b, :h, :w] = image.permute(1, 2, 0)  # (3, h, w) → (h, w, 3)
        valid[b, :h, :w] = True
    return memory.permute(0, 3, 1, 2), valid  # (B, H, W, 3) → (B, 3, H, W)


class Repeats:
    """How often each image is shown in an epoch: `factors`, at least 1 each, on average.

    In an epoch an image is shown as often as its factor rounded up or down, by chance (LVIS, appendix B.2). All epochs
    are `length` images long: the factors' sum rounded up, which what is missing of a whole image is spread over.
    """

    def __init__(self, factors: Sequence[float]):
        if not all(1 <= factor < 2**20 for factor in factors):
            raise PansightError(where="repeat factors", expected="numbers of at least 1", found="others")
        parts = np.rint(np.asarray(factors, np.float64) * PARTS).astype(np.int64)  # whole numbers add up exactly
        self.length = -(-int(parts.sum()) // PARTS)
        missing = self.length * PARTS - int(parts.sum())
        parts += np.diff(np.arange(len(parts) + 1) * missing // max(1, len(parts)))
        self._ends = np.cumsum(parts)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The images of an epoch, int64 (length,), in rising order.

        They lie side by side on a line, each as long as its factor, and so many of them lie on each whole number, all
        moved by one random share of 1: whatever its place, the chance that an image gets one more is its fraction.
        """
        marks = (self._ends + int(rng.integers(PARTS))) // PARTS
        return np.repeat(np.arange(len(marks)), np.diff(marks, prepend=0))


PARTS = 2**20
"""The fractions of repeat factors are told apart to so many parts of 1."""


def stream_indices(length: int, positions: Sequence[int], seed: int, repeats: Repeats | None = None) -> list[int]:
    """Which sample is at each position of the endless training stream: epoch after epoch, each newly shuffled.

    repeats: how often each of the `length` samples is in an epoch; None: once.
    """
    orders: dict[int, np.ndarray] = {}
    result: list[int] = []
    for position in positions:
        epoch, place = divmod(position, length if repeats is None else repeats.length)
        if epoch not in orders:
            rng = np.random.default_rng((seed, ORDER, epoch))
            orders[epoch] = rng.permutation(length if repeats is None else repeats.draw(rng))
        result.append(int(orders[epoch][place]))
    return result


class TrainBatches:
    """Map-style view for the workers: step → the rank's slice of that step's global batch."""

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform | None,
        batch_size: int,
        divisor: int,
        seed: int,
        rank: int,
        world: int,
        repeats: Repeats | None = None,
    ):
        self.dataset, self.transform, self.divisor, self.seed = dataset, transform, divisor, seed
        self.repeats = repeats
        self.batch_size, self.rank, self.share = batch_size, rank, batch_size // world

    def __getitem__(self, step: int) -> Batch:
        first = step * self.batch_size + self.rank * self.share
        positions = range(first, first + self.share)
        samples: list[Sample] = []
        indices = stream_indices(len(self.dataset), positions, self.seed, self.repeats)
        for position, index in zip(positions, indices):
            sample = self.dataset[index]
            if self.transform is not None:
                sample = self.transform(sample, np.random.default_rng((self.seed, AUGMENTATION, position)))
            samples.append(sample)
        return collate(samples, self.divisor)


def whole_batch(batch_size: int, images: int, world: int) -> int:
    """`batch_size` cut to the number of training images, since a step that shows an image twice learns nothing more.

    The result is a multiple of the `world` processes that share it out, at least one image for each. 0, which leaves
    the size open, stays.
    """
    if batch_size <= images:
        return batch_size
    return min(batch_size, max(1, images // world) * world)


def train_stream(
    dataset: Dataset,
    transform: Transform | None,
    batch_size: int,
    divisor: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    repeats: Sequence[float] | None = None,
) -> Iterator[Batch]:
    """The batches of steps start_step … steps − 1; without end where `steps` is 0.

    batch_size: of all ranks together; rank r gets the r-th of `world` equal slices. repeats: how often each image is
    shown in an epoch, on average and at least once; None: once. Raises PansightError where the batch does not divide,
    for an empty data set, for repeats of other images, and for what the data set raises, with workers as without.
    """
    if len(dataset) == 0:
        raise PansightError(where="training data", expected="images", found="an empty data set")
    if batch_size < 1 or batch_size % world != 0:
        raise PansightError(
            where="batch size", expected=f"a positive multiple of the {world} processes", found=batch_size
        )
    if not 0 <= rank < world or seed < 0:
        raise PansightError(
            where="loader", expected=f"rank 0 … {world - 1} and seed ≥ 0", found=f"rank {rank}, seed {seed}"
        )
    if repeats is not None and len(repeats) != len(dataset):
        raise PansightError(
            where="repeat factors", expected=f"one for each of {len(dataset)} images", found=len(repeats)
        )
    drawn = None if repeats is None else Repeats(repeats)
    batches = TrainBatches(dataset, transform, batch_size, divisor, seed, rank, world, drawn)
    return map(pinned, run_workers(batches.__getitem__, range(start_step, steps or sys.maxsize), workers))


class View(NamedTuple):
    """B photos as a network takes them: one size, perhaps mirrored. Nothing is known of what they show."""

    images: Tensor  # uint8, or float32 0 … 255 (B, 3, H, W), padded right and bottom with zeros
    valid: Tensor  # bool (B, H, W), False on padding
    mirrored: bool = False


Views = tuple[View, ...]
"""The same photos at one or more sizes, mirrored or not."""


class EvaluationBatches:
    """Map-style view for the workers: number of a batch → (its views, its samples as they are on disk)."""

    def __init__(self, dataset: Dataset, views: Callable[[Sequence[Tensor]], Views], chunks: Sequence[Sequence[int]]):
        self.dataset, self.views, self.chunks = dataset, views, chunks

    def __getitem__(self, chunk: int) -> tuple[Views, list[Sample]]:
        samples = [self.dataset[index] for index in self.chunks[chunk]]
        return self.views([s.image for s in samples]), samples


def evaluation_loader(
    dataset: Dataset,
    views: Callable[[Sequence[Tensor]], Views],
    batch_size: int = 1,
    workers: int = 0,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[Views, list[Sample]]]:
    """(views for the model, samples at the size of their files) in order; the last batch may be smaller.

    views: makes the network's input of photos, uint8 (3, H, W) each; it runs in the workers. indices: which samples,
    for instance those of one rank; all by default.
    """
    if batch_size < 1:
        raise PansightError(where="batch size", expected="at least 1", found=batch_size)
    chosen = range(len(dataset)) if indices is None else indices
    chunks = [list(chosen[i : i + batch_size]) for i in range(0, len(chosen), batch_size)]
    batches = EvaluationBatches(dataset, views, chunks)
    for made, samples in run_workers(batches.__getitem__, range(len(chunks)), workers):
        yield tuple(_pinned_view(view) for view in made), samples


def pinned(batch: Batch) -> Batch:
    """The batch with its images in page-locked memory where there is a GPU to copy them to, else as it is."""
    view = _pinned_view(View(batch.images, batch.valid))
    return replace(batch, images=view.images, valid=view.valid)


def _pinned_view(view: View) -> View:
    if not torch.cuda.is_available():
        return view
    return view._replace(images=view.images.pin_memory(), valid=view.valid.pin_memory())


# --- workers ---------------------------------------------------------------------------------------------------------

Item = TypeVar("Item", Batch, tuple[Views, list[Sample]])


class _Guarded:
    """The map-style data set that torch's workers see: item → packed result or PansightError.

    The error is handed out as a result, since torch would wrap one that is raised into a page of traceback.
    """

    def __init__(self, make: Callable[[int], Item], keys: Sequence[int]):
        self.make, self.keys = make, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: int) -> Batch | tuple[Views, list[Sample]] | PansightError:
        try:
            return _packed(self.make(self.keys[place]))
        except PansightError as error:
            return error


def run_workers(make: Callable[[int], Item], keys: Sequence[int], workers: int) -> Iterator[Item]:
    """make(key) for every key, in order, computed here (workers=0) or in that many processes ahead of time."""
    if workers == 0:
        yield from map(make, keys)
        return
    loader = DataLoader(
        _Guarded(make, keys),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
    )
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # before the fork: a child that ends a pool of threads it did not inherit waits for ever
    try:
        results = iter(loader)  # starts the workers; torch gives each one thread of its own
    finally:
        cv2.setNumThreads(threads)
    for result in results:
        if isinstance(result, PansightError):
            raise result
        yield result


def _as_it_is(result: object) -> object:
    return result


def _packed(item: Item) -> Item:
    """The same item with all its tensors in one shared block.

    torch hands a file descriptor per block from process to process: with one per tensor, a machine with many workers
    passes the usual limit of 1024.
    """
    views, samples = ((View(item.images, item.valid),), []) if isinstance(item, Batch) else item
    truths = item.truths if isinstance(item, Batch) else tuple(s.truth for s in samples)
    instances = item.instances if isinstance(item, Batch) else tuple(s.instances for s in samples)
    proposals = item.proposals if isinstance(item, Batch) else tuple(s.proposals for s in samples)
    owners: list[PanopticSegmentation | Instances] = [*truths, *(i for i in instances if i is not None)]
    tensors = [t for view in views for t in (view.images.permute(0, 2, 3, 1), view.valid)]
    tensors += [s.image.permute(1, 2, 0) for s in samples] + [t for owner in owners for t in _tensors(owner)]
    tensors += [p for p in proposals if p is not None]
    shared = iter(_share(tensors))
    views = tuple(View(next(shared).permute(0, 3, 1, 2), next(shared), view.mirrored) for view in views)
    images = [next(shared).permute(2, 0, 1) for _ in samples]
    truths = tuple(PanopticSegmentation(next(shared), t.segments) for t in truths)
    instances = tuple(None if i is None else _rebuilt(i, shared) for i in instances)
    proposals = tuple(None if p is None else next(shared) for p in proposals)
    if isinstance(item, Batch):
        seen = views[0]
        parts = {"truths": truths, "instances": instances, "proposals": proposals}
        return replace(item, images=seen.images, valid=seen.valid, **parts)
    columns = zip(samples, images, truths, instances, proposals)
    return views, [replace(s, image=i, truth=t, instances=n, proposals=p) for s, i, t, n, p in columns]


def _tensors(owner: PanopticSegmentation | Instances) -> list[Tensor]:
    if isinstance(owner, PanopticSegmentation):
        return [owner.ids]
    found = [owner.boxes_xyxy, owner.labels, owner.scores, owner.masks, owner.is_crowd]
    return [t for t in found if t is not None]


def _rebuilt(old: Instances, views: Iterator[Tensor]) -> Instances:
    """`old` with its tensors, in the order of _tensors, taken from `views`."""
    boxes, labels, scores = next(views), next(views), next(views)
    masks = None if old.masks is None else next(views)
    return Instances(boxes, labels, scores, masks, None if old.is_crowd is None else next(views))


def _share(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the tensors as views of one uint8 block of shared memory, each at a multiple of 8 bytes."""
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.numel() * tensor.element_size() // 8) * 8
    block = torch.empty(end, dtype=torch.uint8).share_memory_()  # (bytes,)
    views: list[Tensor] = []
    for tensor, start in zip(tensors, starts):
        part = block[start : start + tensor.numel() * tensor.element_size()]
        view = part.view(tensor.dtype).view(tensor.shape)
        view.copy_(tensor)
        views.append(view)
    return views

"""Find the largest batch that the memory of an accelerator holds, by trying steps of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from pansight.config import Config
from pansight.data import Dataset
from pansight.data.loader import train_stream
from pansight.engine import distributed
from pansight.engine.assemble import make_model, make_transform
from pansight.engine.automatic.statistics import Choice
from pansight.engine.optim import freeze
from pansight.errors import PansightError
from pansight.models import builder_options
from pansight.nn.checkpointing import set_checkpointing

MOST = 256
"""More images than this in a step are not tried."""

SHARE = 0.9
"""The share of the memory that a step may take: later images may have more objects."""


def choose_batch_by_memory(fits: Callable[[int], bool], images: int, device: torch.device, world: int) -> list[Choice]:
    """As many images a step as the memory of an accelerator holds. fits: of `memory_probe`; images: of the data.

    Raises PansightError for several processes, each of which would find a number of its own.
    """
    if world > 1:
        expected, hint = "one process", "--train.batch-size N"
        raise PansightError(where="train.batch_size -1", expected=expected, found=f"{world} processes", hint=hint)
    size = largest_batch(fits, max(1, min(MOST, images)))
    return [Choice("train.batch_size", size, f"the most that was tried and fits into the memory of {device.type}")]


def largest_batch(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 1, 2, 4 … and `most` that fits; 1 where none does, for which training then has its own message."""
    size = 1
    if not fits(size):
        return size
    while size < most:
        larger = min(2 * size, most)
        if not fits(larger):
            return size
        size = larger
    return size


def memory_probe(config: Config, dataset: Dataset, device: torch.device) -> Callable[[int], bool]:
    """A function that says whether a step of so many images fits into the memory of `device`.

    It trains a copy of the model, which is thrown away, on the images that the training begins with.
    """

    def fits(images: int) -> bool:
        done = distributed.unless_out_of_memory(lambda: _step(config, dataset, device, images))
        used = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            # what other programs hold is not to be had
            free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
            return done is not None and used <= SHARE * free
        return done is not None

    return fits


def _step(config: Config, dataset: Dataset, device: torch.device, images: int) -> bool:
    """One step of training, with an optimiser that has the state of Adam and changes nothing."""
    settings = config.model
    if "pretrained" in builder_options(settings.name):
        settings = replace(settings, pretrained="none")  # random weights take as much memory
    model = make_model(settings, dataset.labels)[0]
    layout = torch.channels_last if config.train.channels_last else torch.preserve_format
    model.to(device, memory_format=layout).train()
    freeze(model, config.train.freeze)
    set_checkpointing(model, config.train.checkpointing)
    transform, divisor = make_transform(config.augment, model.input.resize)
    batch = next(train_stream(dataset, transform, images, divisor, 1, config.train.seed))
    precision = distributed.resolve_precision(config.train.precision, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    with distributed.autocast(precision, device):
        losses = model.loss(distributed.to_device(batch, device), None)
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    optimizer.step()
    return True

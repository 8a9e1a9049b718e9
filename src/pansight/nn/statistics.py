"""The running statistics of BatchNorm: what a network in training mode changes without being asked to learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Means, variances and counters of all BatchNorm layers (and what is built like them), not copied.

    Frozen BatchNorm has none: its numbers are constants.
    """
    return [buffer for layer in _layers(model) for buffer in layer.buffers(recurse=False)]


def trains_batch_norm(model: nn.Module) -> bool:
    """Whether, in the mode that it is in, a layer of the model normalises by the images that it sees together."""
    return any(layer.training for layer in _layers(model))


def restore_statistics(statistics: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Give the tensors of `running_statistics` the values of copies that were made of them."""
    for tensor, copy in zip(statistics, before, strict=True):
        tensor.copy_(copy)


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """What passes through the model inside leaves its running statistics as they were."""
    statistics = running_statistics(model)
    before = [tensor.clone() for tensor in statistics]
    try:
        yield
    finally:
        with torch.no_grad():
            restore_statistics(statistics, before)


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]

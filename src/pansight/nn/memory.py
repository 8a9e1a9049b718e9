"""The memory that the weights of a network would take, counted without building it."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from pansight.errors import PansightError

IN_TRAINING = 4
"""Weights, gradients and the two moments of Adam take so many times the weights."""

TENSORS = 10_000
"""A network with more weight tensors would take minutes to build; the deepest published one has some 2,000."""

DROPPED = 4
"""Parts may be built twice, or built and dropped: counting stops early only at so many times what is allowed."""


def machine_memory() -> int:
    """Bytes of the machine's memory, or of all its GPUs where these have more; a huge number where it is not told."""
    try:
        own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**60
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    return max(own, sum(torch.cuda.get_device_properties(card).total_memory for card in cards))


def check_memory(build: Callable[[], Any], most: int, training: bool) -> None:
    """Raises PansightError where the network that `build` makes needs more than `most` bytes, or more weight tensors
    than any network has.

    training: its gradients and the state of Adam count too. Nothing is allocated, since the network is built on torch's
    meta device, and that is stopped as soon as the answer is certain. A network that reads values while it is built,
    which that device has not, is let pass.
    """
    times = IN_TRAINING if training else 1
    what = "weights, gradients and the state of the optimiser" if training else "weights"
    thread = threading.get_ident()
    seen = tensors = 0

    def refuse(needed: int, about: str = "") -> PansightError:
        limit, found = f"{most / 2**30:,.1f} GiB", f"{about}{needed / 2**30:,.1f} GiB"
        expected = f"{what} of at most {limit}, several times this machine's memory"
        return PansightError(expected=expected, found=found, hint="smaller options", code="out_of_memory")

    def count(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        nonlocal seen, tensors
        if tensor is None or threading.get_ident() != thread:
            return
        tensors += 1
        seen += tensor.numel() * tensor.element_size() * (times if isinstance(tensor, nn.Parameter) else 1)
        if tensors > TENSORS:
            raise PansightError(expected=f"a network of at most {TENSORS} weight tensors", found="more")
        if seen > DROPPED * most:
            raise refuse(seen, "more than ")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            network: nn.Module = build()
    except NotImplementedError:
        return
    finally:
        for hook in hooks:
            hook.remove()
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())
    needed = times * weights + sum(tensor.numel() * tensor.element_size() for tensor in network.buffers())
    if needed > most:
        raise refuse(needed)

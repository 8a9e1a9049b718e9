"""Gradient checkpointing: layers that keep only their input for the backward pass and are computed again there.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Module):
    """A layer whose forward pass is repeated in the backward pass where `recomputes` is set and gradients are wanted.

    Random numbers (dropout) are drawn again as they were the first time.
    """

    recomputes: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return recomputed(super().__call__, self.recomputes and self.training, *args, **kwargs)


def recomputed(function: Callable[..., Any], recomputes: bool, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), which is run again in the backward pass where `recomputes` says so."""
    if not (recomputes and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


def set_checkpointing(model: nn.Module, on: bool) -> tuple[str, ...]:
    """Switch gradient checkpointing of every part that knows it; returns the names of the parts of the model that do.

    These are our own layers (`Recomputed`) and the networks of timm. Weights, outputs and gradients stay the same.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Recomputed):
            module.recomputes = on
            found.append(name)
        elif type(module).__module__.startswith("timm.models"):
            switch = getattr(module, "set_grad_checkpointing", None)  # networks have it, their blocks do not
            if switch is not None and _switched(switch, on):
                found.append(name)
    return tuple(dict.fromkeys(name.partition(".")[0] for name in found))


def _switched(switch: Callable[..., None], on: bool) -> bool:
    try:
        switch(enable=on)
    except AssertionError:  # timm's way to say that a network cannot
        return False
    return True

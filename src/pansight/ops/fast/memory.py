"""Less memory: what is computed again in the backward pass, and masks at the size of the file by bands of rows."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pansight.ops.fast import use_plain
from pansight.ops.fusion.contest import Canvas, resized

P = ParamSpec("P")
Result = TypeVar("Result")


def checkpointed(function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """function(*args), which keeps only its arguments for the backward pass and runs again there.

    Nothing in it may be random. For blocks that widen their input (80 MiB less for a training step of Mask2Former with
    Swin-T, 2 × 256×256) and losses at full size. Plain: the function itself.
    """
    learns = any(isinstance(each, Tensor) and each.requires_grad for each in args)
    if not (torch.is_grad_enabled() and learns) or torch.compiler.is_compiling() or use_plain():
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def canvas_rows(mask_logits: Tensor, canvas: Canvas, rows: range) -> Tensor:
    """Some rows of ``on_canvas(mask_logits, canvas)``: float (N, h, w) → float32 (N, len(rows), W)."""
    between = source_rows(canvas.extent[0], canvas.size[0], rows)
    height = mask_logits.shape[1]
    needed = source_rows(height, canvas.padded[0], between)
    part = mask_logits[:, needed.start : needed.stop].float()
    part = resized_rows(part, height, canvas.padded, between, needed.start)[:, :, : canvas.extent[1]]
    return resized_rows(part, canvas.extent[0], canvas.size, rows, between.start)


def resized_rows(maps: Tensor, height: int, size: tuple[int, int], rows: range, first: int = 0) -> Tensor:
    """Some rows of ``resized(…, size)``: (N, len(rows), W). maps: rows from `first` on of maps of `height` rows."""
    if height != size[0]:
        position = (torch.arange(rows.start, rows.stop, device=maps.device) + 0.5) * (height / size[0]) - 0.5
        position = position.clamp_(min=0)
        above = position.long()
        weight = (position - above)[:, None]  # (R, 1)
        below = (above + 1).clamp_(max=height - 1) - first
        part = torch.lerp(maps[:, above - first], maps[:, below], weight)  # (N, R, w)
    else:
        part = maps[:, rows.start - first : rows.stop - first]
    return resized(part, (len(rows), size[1]))


def source_rows(height: int, size: int, rows: range) -> range:
    """The rows of a map of `height` rows that `rows` of its resized version (of `size` rows) are made of."""
    if height == size:
        return rows
    start = max(0, int((rows.start + 0.5) * height / size - 0.5))
    stop = max(0, int((rows.stop - 0.5) * height / size - 0.5)) + 2
    return range(start, min(stop, height))

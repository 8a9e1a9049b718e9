"""Means over the cells of a grid, of maps of any size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def adaptive_mean(maps: Tensor, cells: int) -> Tensor:
    """``adaptive_avg_pool2d``: (B, C, h, w) → (B, C, cells, cells).

    In an exported graph of maps of any size, a product with a matrix of rows and one of columns, since the runtimes
    know no adaptive pooling.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(maps, cells)
    rows, columns = (cell_means(side, cells, maps) for side in maps.shape[2:])
    return rows @ maps @ columns.T


def cell_means(side: int, cells: int, like: Tensor) -> Tensor:
    """(cells, side), of the dtype and device of `like`: row i takes the mean of the places of cell i.

    These are floor(i · side / cells) … ceil((i + 1) · side / cells), so that neighbours may share a place.
    """
    cell = torch.arange(cells, device=like.device)
    place = torch.arange(side, device=like.device)
    start = torch.div(cell * side, cells, rounding_mode="floor")
    end = torch.div((cell + 1) * side + cells - 1, cells, rounding_mode="floor")
    inside = ((place >= start[:, None]) & (place < end[:, None])).to(like.dtype)  # (cells, side)
    return inside / (end - start).to(like.dtype)[:, None]

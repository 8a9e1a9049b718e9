"""Means over the cells of a grid, as matrix products: torch's own adaptive pooling, whatever the size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pansight.ops.semantic.pooling import adaptive_mean, cell_means


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(6, 6), (7, 11), (2, 5), (13, 4)])
def test_products_are_adaptive_pooling(cells: int, size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size)
    rows, columns = (cell_means(side, cells, maps) for side in size)
    torch.testing.assert_close(rows @ maps @ columns.T, F.adaptive_avg_pool2d(maps, cells))
    assert torch.equal(adaptive_mean(maps, cells), F.adaptive_avg_pool2d(maps, cells))

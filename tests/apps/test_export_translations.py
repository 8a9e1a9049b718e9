"""Operators that torch's exporter to ONNX does not know: the graph says what torch says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pansight.apps.exporting.engines import Traced, open_onnx, write_onnx


class Sorts(nn.Module):
    def forward(self, scores: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        """Whole numbers, of which many are equal: scores (N, M), groups (K,), ascending."""
        order = scores.argsort(descending=True, stable=True)
        first = scores.sort(dim=0, stable=True).indices
        return order, first, torch.searchsorted(groups, groups), torch.searchsorted(groups, groups, right=True)


@pytest.mark.slow
def test_sorting_keeps_the_order_of_equal_values(tmp_path: Path) -> None:
    def drawn(rows: int, seed: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        values = torch.randint(0, 3, (rows, 9), generator=draw)
        return values.float(), values.flatten().sort().values

    free = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Sorts(), drawn(5, 0), dynamic_shapes=(free, free), strict=False)
    names = ("scores", "groups")
    write_onnx(Traced(program, names, ("order", "first", "left", "right")), tmp_path / "model.onnx")
    known, run = open_onnx(tmp_path / "model.onnx", names)
    assert known == list(names)
    for seed, rows in enumerate((5, 7, 2)):
        inputs = drawn(rows, seed)
        for found, expected in zip(run(inputs), Sorts()(*inputs), strict=True):
            assert torch.equal(found, expected)

"""Operators that torch's exporter to ONNX does not know: the graph says what torch says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pansight.apps.exporting.engines import Traced, open_onnx, open_torch, write_onnx, write_torch
from pansight.apps.exporting.tracing import drop_ceilings


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


class Pools(nn.Module):
    def forward(self, maps: Tensor, rois: Tensor) -> Tensor:
        return torchvision.ops.roi_pool(maps, rois, 3, 0.25)


@pytest.mark.slow
def test_the_largest_values_of_regions(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    maps, corner = torch.randn(2, 3, 8, 12, generator=draw), torch.rand(9, 2, generator=draw) * 20
    number = torch.arange(9)[:, None] % 2
    rois = torch.cat((number, corner, corner + torch.rand(9, 2, generator=draw) * 20), dim=1)
    program = torch.export.export(Pools(), (maps, rois), strict=False)
    write_onnx(Traced(program, ("maps", "rois"), ("cells",)), tmp_path / "model.onnx")
    _, run = open_onnx(tmp_path / "model.onnx", ("maps", "rois"))
    assert torch.equal(run([maps, rois])[0], Pools()(maps, rois))


class Padded(nn.Module):
    def forward(self, maps: Tensor) -> tuple[Tensor]:
        """As timm pads before a pooling of stride 1."""
        return (F.pad(maps, (0, (math.ceil(maps.shape[3] / 1) - 1) * 1 + 2 - maps.shape[3])),)


def test_ceilings_of_whole_numbers_are_no_obstacle_to_saving(tmp_path: Path) -> None:
    free = {3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Padded(), (torch.ones(1, 1, 2, 5),), dynamic_shapes=(free,), strict=False)
    drop_ceilings(program.graph_module)
    write_torch(Traced(program, ("maps",), ("wider",)), tmp_path / "model.pt2")
    _, run = open_torch(tmp_path / "model.pt2", ("maps",))
    assert run([torch.ones(1, 1, 2, 7)])[0].shape == (1, 1, 2, 8)

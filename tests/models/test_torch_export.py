"""torch.export of every model: one graph for any number of images, whose outputs are those of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from pansight.models import MODELS, build
from pansight.types import LabelSpace

GENERAL = [name for name, entry in MODELS.items() if not entry.variant_of]
QUICK = ("faster_rcnn", "fcn")
SLOW = ("upsnet", "panoptic_deeplab", "eomt")
"""Of the kinds of graph; the others are for make test-long."""
SIZE = 64, 96


def images(count: int) -> tuple[Tensor, Tensor]:
    """Photos of noise; of the last one a part is padding."""
    draw = torch.Generator().manual_seed(count)
    valid = torch.ones((count, *SIZE), dtype=torch.bool)
    valid[-1, 50:], valid[-1, :, 90:] = False, False
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=draw), valid


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if name in SLOW else [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=_marks(n)) for n in GENERAL if n not in QUICK)])
@pytest.mark.filterwarnings("ignore:.create_unbacked_symint:FutureWarning")  # torchvision's own
@torch.no_grad()
def test_one_graph_for_any_number_of_images(name: str) -> None:
    torch.manual_seed(0)
    model: Any = build(name, LabelSpace.from_names(["a", "b"], ["c"]), **MODELS[name].tiny)
    model.eval().set_progress(1.0)
    count = torch.export.Dim("count", min=1, max=8)
    program = torch.export.export(model, images(2), dynamic_shapes=({0: count}, {0: count}), strict=False)
    graph = program.module()
    for number in (1, 2, 3):
        found, expected = tensors(graph(*images(number))), tensors(model(*images(number)))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

"""Operators of torch that its ONNX exporter does not know, in those that opset 18 has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operator → what builds it of operators of ONNX."""
    from onnxscript import opset18

    op: Any = opset18  # its operators take values of the graph, which its own types do not know

    def sort_stable(self: Any, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
        """TopK of all values: of equal ones the earlier comes first, in ONNX as in a stable sort."""
        size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: sort_stable}

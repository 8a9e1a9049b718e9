"""Operators that torch's ONNX exporter does not know, or not rightly, in those that opset 18 has."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torchvision  # pyright: ignore[reportMissingTypeStubs]

Translations = dict[Callable[..., Any], Callable[..., Any]]
"""Operator → what builds it of operators of ONNX."""

INT32, INT64 = 6, 7
"""Types of ONNX, as its TensorProto numbers them."""

LARGEST = 2**63 - 1


def translations() -> Translations:
    """All of them; onnxscript, of the extra "export", is not loaded before."""
    from onnxscript import opset18

    op: Any = opset18  # its operators take values of the graph, which its own types do not know
    return {**_of_sorting(op), **_of_lengths(op), **_of_regions(op)}


def _of_sorting(op: Any) -> Translations:
    def sort_stable(self: Any, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
        """TopK of all values: of equal ones the earlier comes first, in ONNX as in a stable sort."""
        size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    def searchsorted(sorted_sequence: Any, self: Any, out_int32: bool = False, right: bool = False) -> Any:
        """Of each value, all of one axis, how many of the sorted ones are less: a comparison of all pairs."""
        columns, rows = op.Unsqueeze(self, [1]), op.Unsqueeze(sorted_sequence, [0])
        before = op.LessOrEqual(rows, columns) if right else op.Less(rows, columns)
        return op.ReduceSum(op.Cast(before, to=INT32 if out_int32 else INT64), [1], keepdims=0)

    return {torch.ops.aten.sort.stable: sort_stable, torch.ops.aten.searchsorted.Tensor: searchsorted}


def _of_lengths(op: Any) -> Translations:
    """Comparisons of lengths that are known only when the graph runs. torch notes what they are sure to be, also by
    bounds beyond the whole numbers that ONNX has.
    """

    def within(value: Any) -> Any:
        return max(-LARGEST, min(LARGEST, value)) if isinstance(value, int) else value

    def at_most(self: Any, other: Any) -> Any:
        return op.LessOrEqual(within(self), within(other))

    def at_least(self: Any, other: Any) -> Any:
        return op.GreaterOrEqual(within(self), within(other))

    return {operator.le: at_most, operator.ge: at_least}


def _of_regions(op: Any) -> Translations:
    def roi_pool(input: Any, rois: Any, spatial_scale: float, pooled_height: int, pooled_width: int) -> Any:
        """The largest of each cell. Where it was found, torchvision's second result, is of use in training alone."""
        found = op.MaxRoiPool(input, rois, pooled_shape=(pooled_height, pooled_width), spatial_scale=spatial_scale)
        return found, op.Cast(found, to=INT32)

    assert torchvision.ops is not None  # which makes its operators known to torch
    return {torch.ops.torchvision.roi_pool.default: roi_pool}

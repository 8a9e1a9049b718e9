"""Figures of a graph on annotated images, beside those of its model: both decode by the same rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from pansight.apps.exporting.engines import Runner
from pansight.apps.exporting.tracing import Graph, Size
from pansight.apps.measuring.parts import open_part
from pansight.config import EvaluateConfig
from pansight.data import Dataset
from pansight.engine import distributed
from pansight.engine.assemble import relabel
from pansight.engine.evaluate import evaluate
from pansight.files import value_at
from pansight.ops.fusion.exported import unflatten
from pansight.types import Prediction

FIGURES = {
    "PQ": ("All", "pq"),
    "PQ of things": ("Things", "pq"),
    "PQ of stuff": ("Stuff", "pq"),
    "mIoU": ("semantic", "miou"),
    "AP of masks": ("instances", "mask", "ap"),
    "AP of boxes": ("instances", "box", "ap"),
}
"""What is compared, and where it stands in the record of an evaluation."""


class GraphModel(nn.Module):
    """A graph in the place of its model, for evaluation: one photo at a time, resized as the graph wants it."""

    def __init__(self, graph: Graph, run: Runner, sizes: Sequence[Size]):
        super().__init__()
        self._graph, self._run, self._sizes = [graph], run, tuple(sizes)  # in a list: its weights are not of this model
        self.labels = graph.model.labels
        self.input, *further = (SimpleNamespace(resize=size.rule) for size in sizes)
        self._further = tuple(further)

    def further_inputs(self) -> tuple[Any, ...]:
        """Of a second network; see ``engine.infer.SeveralInputs``."""
        return self._further

    def forward(self, images: Tensor, valid: Tensor, further: Sequence[tuple[Tensor, Tensor]] = ()) -> Any:
        """images (1, 3, H, W), valid bool (1, H, W) → what `decode` takes."""
        given: list[Tensor] = []
        for size, pair in zip(self._sizes, [(images, valid), *further], strict=True):
            given += size.padded(*pair)
        (graph,) = self._graph
        return unflatten(dict(zip(graph.names, self._run(given), strict=True)), graph.like)

    def decode(self, outputs: Any, sizes: Sequence[tuple[int, int]], **options: Any) -> list[Prediction]:
        """That of the model."""
        return self._graph[0].model.decode(outputs, sizes, **options)


def open_annotated(data: str | Path, model: Any) -> Dataset:
    """Annotated images in the classes of the model. Raises PansightError where they are none, or have other classes."""
    part = open_part(None, data, None, {})
    return relabel(part.dataset, model.labels, part.source)


def figures_of(model: Any, dataset: Dataset, tasks: Sequence[str]) -> dict[str, float]:
    """The figures of FIGURES that a model, or a graph in its place, has: shares of 1."""
    decode = {"task": "all"} if "all" in tasks else {}
    config = EvaluateConfig(batch_size=1, sheet=0, precision="fp32", decode=decode)
    record = evaluate(model, dataset, config, distributed.make_accelerator())
    found = {name: value_at(record, path) for name, path in FIGURES.items()}
    return {name: value for name, value in found.items() if value is not None}


def figure_table(before: Mapping[str, float], after: Mapping[str, float], images: int) -> list[str]:
    """Lines of text: each figure of the model, of its graph, and the difference, in percent and points."""
    lines = [f"{f'{images} images':14s}| {'model':>6s} {'graph':>6s} {'change':>7s}", "-" * 38]
    for name, value in before.items():
        other = after.get(name)
        cells = (100 * value, 100 * other, 100 * (other - value)) if other is not None else None
        lines.append(f"{name:14s}| " + ("" if cells is None else f"{cells[0]:6.1f} {cells[1]:6.1f} {cells[2]:+7.1f}"))
    return lines

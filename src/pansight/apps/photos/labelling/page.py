"""The page to look at before a model is trained on pseudo-labels: what was added, how sure it is, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.apps.pages.draw import resized_image, resized_map
from pansight.apps.pages.figures import environment, hex_color
from pansight.apps.pages.viewer import data_url
from pansight.apps.photos.labelling.filling import REASONS, Labelled
from pansight.data.dataset import image_array, image_tensor
from pansight.drawing.segments import overlay, segment_colors
from pansight.files import write_text
from pansight.types import LabelSpace

if TYPE_CHECKING:
    from pansight.apps.photos.labelling import Labelling

PAGE = "label.html"

EXAMPLES = 24
"""Images on the page, evenly spread over all."""

SIDE = 520
"""Longer side of a picture, pixels."""


class Example(NamedTuple):
    """An image of the page. pictures: (what it is called, JPEG as a data URL)."""

    name: str
    pictures: tuple[tuple[str, str], ...]
    void: float  # share of the pixels, 0 … 1


class Examples:
    """Pictures of some of `total` images, evenly spread; those of the others are not drawn."""

    def __init__(self, labels: LabelSpace, total: int):
        self.labels, self.found = labels, list[Example]()
        count = min(EXAMPLES, total)
        self._wanted = {(2 * n + 1) * total // (2 * count) for n in range(count)}

    def add(self, index: int, name: str, photo: NDArray[np.uint8], labels: Labelled) -> None:
        """photo: uint8 RGB (H, W, 3)."""
        if index not in self._wanted:
            return
        height, width = labels.map.size
        scale = SIDE / max(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        small = resized_image(image_tensor(photo), size)
        colors = segment_colors(labels.map.segments, self.labels)
        maps = {"labels": labels.map}
        if labels.kept:
            maps = {"annotated before": labels.part(kept=True), "filled": labels.part(kept=False)}
        pictures = [("photo", data_url(image_array(small), size))]
        for title, segmentation in maps.items():
            drawn = overlay(small, resized_map(segmentation, size), self.labels, background=True, colors=colors)
            pictures.append((title, data_url(image_array(drawn), size)))
        void = sum(labels.void.values()) / labels.map.ids.numel()
        self.found.append(Example(name, tuple(pictures), void))


def write_page(path: Path, result: Labelling, labels: LabelSpace, examples: Examples, asked: Mapping[str, Any]) -> None:
    """One file that needs no server and no network. asked: what was asked for, as label.json holds it."""
    now = datetime.now()
    text = (
        environment()
        .get_template("label.html.j2")
        .render(
            title=f"Labels of {Path(asked['weights']).name}",
            date=f"{now.day} {now:%B %Y, %H:%M}",
            version=version("pansight"),
            asked=asked,
            result=result,
            rows=[(row, hex_color(labels.by_name()[row.name].color)) for row in result.classes if row.segments],
            absent=[row.name for row in result.classes if not row.segments],
            reasons=[(REASONS[reason], share) for reason, share in result.reasons.items()],
            examples=examples.found,
        )
    )
    write_text(path, text)

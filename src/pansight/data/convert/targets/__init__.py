"""The formats that `convert` writes, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pansight.data.convert.overlap import Resolved
from pansight.data.convert.source import Annotated
from pansight.data.convert.targets.coco import CocoInstancesTarget, CocoPanopticTarget
from pansight.data.convert.targets.folders import CityscapesTarget, SemanticPngTarget, YoloSegTarget
from pansight.data.convert.targets.webdataset import WebDatasetTarget
from pansight.types import LabelSpace


class Target(Protocol):
    """A data set that is written image by image into an empty folder. Raises PansightError for what it cannot hold."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user must know of what was left out, once all is added."""
        ...

    def image_file(self, split: str, file_name: str) -> Path:
        """Where the image file goes; `convert` puts it there."""
        ...

    def draw(self, image: Annotated, result: Resolved) -> Any:
        """All that takes time, for `add`: it changes and writes nothing, so that threads may draw at once."""
        ...

    def add(self, split: str, image: Annotated, drawn: Any) -> None:
        """Write an image; in the order of the source."""
        ...

    def close(self) -> None:
        """Write what is known at the end only."""
        ...


TARGETS: dict[str, Callable[[Path, LabelSpace], Target]] = {
    "coco_panoptic": CocoPanopticTarget,
    "coco_instances": CocoInstancesTarget,
    "semantic_png": SemanticPngTarget,
    "yolo_seg": YoloSegTarget,
    "cityscapes": CityscapesTarget,
    "webdataset": WebDatasetTarget,
}

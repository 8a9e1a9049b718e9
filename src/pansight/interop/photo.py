"""A prediction that knows its photo: what `Predictor.predict` returns."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pansight.data.dataset import image_array, image_tensor
from pansight.data.images import write_picture
from pansight.drawing.prediction import draw_prediction
from pansight.interop.pieces import pieces
from pansight.types import LabelSpace, Prediction


@dataclass(frozen=True, eq=False)
class PhotoPrediction(Prediction):
    """A prediction that knows its photo, uint8 RGB (H, W, 3), and the names of its classes."""

    photo: NDArray[np.uint8] = field(kw_only=True)
    labels: LabelSpace = field(kw_only=True)

    def overlay(
        self,
        path: str | Path | None = None,
        *,
        score: float = 0.5,
        opacity: float = 0.5,
        names: bool = True,
        background: bool = False,
    ) -> Image.Image:
        """What was found, painted over the photo; written to `path` as well, where one is given.

        score: objects below it are left out, where there is no panoptic map. opacity: of the paint, 0..1. names: class
        names and scores. background: paint stuff of the name background, too.
        Raises PansightError where the file cannot be written.
        """
        picture = image_array(
            draw_prediction(
                image_tensor(self.photo),
                self,
                self.labels,
                score=score,
                opacity=opacity,
                names=names,
                background=background,
            )
        )
        if path is not None:
            write_picture(path, picture)
        return Image.fromarray(picture)

    def show(self, **options: Any) -> None:
        """Open the overlay in a window, or below the cell of a notebook; options as of `overlay`."""
        self.overlay(**options).show()

    def _repr_png_(self) -> bytes:
        """The overlay, for notebooks."""
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """The overlay and a table of what was found, for notebooks."""
        cells = "".join(
            f"<tr><td>{html.escape(piece.category.name)}</td><td>{piece.score:.2f}</td>"
            f"<td>{'' if piece.mask is None else int(piece.mask.sum())}</td></tr>"
            for piece in pieces(self, self.labels)
        )
        picture = base64.b64encode(self._repr_png_()).decode()
        head = "<tr><th>class</th><th>score</th><th>pixels</th></tr>"
        return f'<img src="data:image/png;base64,{picture}"><table>{head}{cells}</table>'

    def to_numpy(self) -> dict[str, Any]:
        """Arrays: ids int32 (H, W) and segments (as tuples), semantic int64 (H, W), boxes_xyxy float32 (N, 4), labels,
        scores and masks bool (N, H, W) of objects; of them what the model gives.
        """
        found: dict[str, Any] = {}
        if self.panoptic is not None:
            found |= {"ids": self.panoptic.ids.cpu().numpy(), "segments": [tuple(s) for s in self.panoptic.segments]}
        if self.semantic is not None:
            found["semantic"] = self.semantic.cpu().numpy()
        if self.instances is not None:
            columns = ("boxes_xyxy", "labels", "scores", "masks")
            tensors = {name: getattr(self.instances, name) for name in columns}
            found |= {name: tensor.cpu().numpy() for name, tensor in tensors.items() if tensor is not None}
        return found

    def to_coco_panoptic(
        self, image_id: str | int = 0, file_name: str = "0.png"
    ) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """The annotation and the colours of its PNG: see `interop.coco.to_coco_panoptic`."""
        from pansight.interop.coco import to_coco_panoptic

        return to_coco_panoptic(self, self.labels, image_id, file_name)

    def to_coco_results(self, image_id: str | int = 0, score: float = 0.0) -> list[dict[str, Any]]:
        """A row for each object: see `interop.coco.to_coco_results`."""
        from pansight.interop.coco import to_coco_results

        return to_coco_results(self, self.labels, image_id, score)

    def to_pipeline(self, score: float = 0.5) -> list[dict[str, Any]]:
        """As the pipelines of transformers return it: see `interop.huggingface.to_pipeline`."""
        from pansight.interop.huggingface import to_pipeline

        return to_pipeline(self, self.labels, score)

    def to_processed(self) -> dict[str, Any]:
        """As the image processors of transformers return it: see `interop.huggingface.to_processed`."""
        from pansight.interop.huggingface import to_processed

        return to_processed(self, self.labels)

    def to_supervision(self, score: float = 0.5, stuff: bool = False) -> Any:
        """``supervision.Detections``: see `interop.supervision.to_supervision`."""
        from pansight.interop.supervision import to_supervision

        return to_supervision(self, self.labels, score, stuff)

    def to_fiftyone(self, score: float = 0.5) -> dict[str, Any]:
        """FiftyOne's things and stuff: see `interop.fiftyone.to_fiftyone`."""
        from pansight.interop.fiftyone import to_fiftyone

        return to_fiftyone(self, self.labels, (self.photo.shape[0], self.photo.shape[1]), score)

    def to_geojson(self, score: float = 0.5, transform: Sequence[float] | None = None) -> dict[str, Any]:
        """Polygons, in pixels or by the transform of a GeoTIFF: see `interop.geojson.to_geojson`."""
        from pansight.interop.geojson import to_geojson

        return to_geojson(self, self.labels, score, transform)

    def to_napari(self, name: str = "pansight") -> tuple[Any, dict[str, Any], str]:
        """A layer of labels: see `interop.napari.to_napari`."""
        from pansight.interop.napari import to_napari

        return to_napari(self, self.labels, name)

    def to_label_studio(
        self, from_name: str = "tag", to_name: str = "image", score: float = 0.5, as_polygons: bool = False
    ) -> list[dict[str, Any]]:
        """Regions: see `interop.label_studio.to_label_studio`."""
        from pansight.interop.label_studio import to_label_studio

        return to_label_studio(self, self.labels, from_name, to_name, score, as_polygons)

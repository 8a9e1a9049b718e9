"""A model without its framework: an exported folder that predicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .engines import Run, open_graph
from .errors import RuntimeFault
from .folder import Export, read_export
from .photos import Input, checked_photo, input_of, read_photo
from .rules import RULES
from .rules.inside import applied
from .values import Array, Label, Prediction


class Model:
    """An exported folder, opened: `labels` are its classes, `tasks` what it may be asked for, () for a single thing."""

    def __init__(self, export: Export, run: Run):
        self._export, self._run = export, run
        self.labels: tuple[Label, ...] = export.rule.labels
        self.tasks: tuple[str, ...] = export.tasks

    def predict(self, photo: str | Path | Array, task: str | None = None) -> Prediction:
        """What the model says of a photo, at its own size.

        photo: a file, turned upright as its EXIF tag says, or uint8 (H, W, 3), RGB. task: one of `tasks`, None for the
        model's own. Raises RuntimeFault where the photo cannot be read or is another array, and for an unknown task.
        """
        if task is not None and task not in self.tasks:
            raise RuntimeFault("task", f"one of {', '.join(self.tasks)}" if self.tasks else "none", repr(task))
        array = checked_photo(photo) if isinstance(photo, np.ndarray) else read_photo(photo)
        size, rule = (array.shape[0], array.shape[1]), self._export.rule
        first = input_of(array, self._export.input)
        outputs = self._outputs(array, first)
        return applied(outputs, first.valid[0], size) if rule.inside else RULES[rule.name](outputs, size, rule, task)

    def _outputs(self, photo: Array, first: Input) -> Mapping[str, Array]:
        known = {"images": first.images, "valid": first.valid}
        if self._export.further is not None:
            second = input_of(photo, self._export.further)
            known |= {"further_images": second.images, "further_valid": second.valid}
        outputs = self._run([known[name] for name in self._export.inputs])
        return dict(zip(self._export.outputs, outputs, strict=True))


def open_model(folder: str | Path, engine: str = "auto", threads: int = 0) -> Model:
    """An exported folder as a model that predicts. engine: "auto", "onnxruntime" or "openvino"; threads: 0: its own.

    Raises RuntimeFault in a line where the folder, its graph or the engine is not as it should be.
    """
    export = read_export(folder)
    return Model(export, open_graph(export.graph, export.inputs, export.outputs, engine, threads))

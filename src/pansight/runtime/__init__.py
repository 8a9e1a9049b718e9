"""Prediction with an exported graph, without torch: NumPy, Pillow and ONNX Runtime or OpenVINO.

    model = runtime.open("exported", threads=2)
    prediction = model.predict("photo.jpg")
    runtime.write("maps", [("photo", prediction)], model.labels)

This part imports nothing else of pansight, so that it can also be shipped alone.
"""

from __future__ import annotations

from .errors import RuntimeFault
from .model import Model, open_model
from .values import IGNORE, Instances, Label, Panoptic, Prediction, Segment
from .writing import write

open = open_model

__all__ = [
    "IGNORE",
    "Instances",
    "Label",
    "Model",
    "Panoptic",
    "Prediction",
    "RuntimeFault",
    "Segment",
    "open",
    "write",
]

"""A model of FiftyOne.

    from pansight.integrations.fiftyone import FiftyOneModel

    dataset.apply_model(FiftyOneModel("runs/demo"), label_field="pansight")

gives each sample the fields pansight_things and pansight_stuff, as far as the model knows such classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from fiftyone.core.models import Model  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    from pansight.errors import PansightError

    raise PansightError(
        where="pansight.integrations.fiftyone",
        expected="the package fiftyone",
        found="none",
        hint="install the extra pansight[fiftyone]",
    ) from error

from pansight.engine.predict import Predictor, load
from pansight.integrations.asking import predict_above


class FiftyOneModel(Model):
    """weights: what `pansight.load` takes, or a Predictor. score: objects below it are left out."""

    def __init__(self, weights: str | Predictor, score: float = 0.5, device: str | None = None):
        self._predictor = weights if isinstance(weights, Predictor) else load(weights, device)
        self._score = score

    @property
    def media_type(self) -> str:
        """What it is applied to."""
        return "image"

    @property
    def transforms(self) -> None:
        """None: photos are taken as they are."""
        return None

    @property
    def preprocess(self) -> bool:
        """False, since there is nothing to switch on."""
        return False

    @property
    def ragged_batches(self) -> bool:
        """True: photos of different sizes are not put into one array."""
        return True

    def predict(self, arg: NDArray[np.uint8]) -> dict[str, Any]:
        """Things and stuff of a photo uint8 RGB (H, W, 3)."""
        return predict_above(self._predictor, arg, self._score).to_fiftyone(self._score)

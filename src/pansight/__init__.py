"""Panoptic segmentation: from a folder of annotations to a trained, measured, explained model.

    run = pansight.train(model="panoptic_fpn", backbone="resnet50", data="my_data")
    record = pansight.evaluate(run.folder)
    prediction = pansight.load(run.folder).predict("photo.jpg")

Everything is loaded on first use: importing pansight itself takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pansight.apps.commands import evaluate, train
    from pansight.apps.exporting import export
    from pansight.apps.pages.comparison import compare
    from pansight.apps.photos import predict
    from pansight.apps.photos.huge import Tiling, predict_huge
    from pansight.apps.photos.labelling import label
    from pansight.apps.scoring import evaluate_files
    from pansight.apps.scoring.combining import combine_files
    from pansight.data.check import check
    from pansight.data.check.split import split
    from pansight.data.convert import convert
    from pansight.engine.predict import Predictor, combine_models, load
    from pansight.errors import PansightError
    from pansight.types import (
        Batch,
        Category,
        Instances,
        LabelSpace,
        PanopticSegmentation,
        Prediction,
        Sample,
        Segment,
    )

__all__ = [
    "Batch",
    "Category",
    "Instances",
    "LabelSpace",
    "PanopticSegmentation",
    "PansightError",
    "Prediction",
    "Predictor",
    "Sample",
    "Segment",
    "Tiling",
    "check",
    "combine_files",
    "combine_models",
    "compare",
    "convert",
    "evaluate",
    "evaluate_files",
    "export",
    "label",
    "load",
    "predict",
    "predict_huge",
    "split",
    "train",
]

_HOME = {
    "check": "data.check",
    "split": "data.check.split",
    "convert": "data.convert",
    "compare": "apps.pages.comparison",
    "evaluate_files": "apps.scoring",
    "train": "apps.commands",
    "evaluate": "apps.commands",
    "export": "apps.exporting",
    "predict": "apps.photos",
    "predict_huge": "apps.photos.huge",
    "label": "apps.photos.labelling",
    "Tiling": "apps.photos.huge",
    "load": "engine.predict",
    "combine_files": "apps.scoring.combining",
    "combine_models": "engine.predict",
    "Predictor": "engine.predict",
    "PansightError": "errors",
}
"""Where a public name lives; the others are types."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pansight' has no attribute {name!r}")
    value = getattr(import_module(f"pansight.{_HOME.get(name, 'types')}"), name)
    globals()[name] = value  # the next access finds it at once
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

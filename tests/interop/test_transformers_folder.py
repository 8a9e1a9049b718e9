"""The folder that `export --to hf` writes, inside the tools that load such folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from found import SPACE, image, predictor
from PIL import Image
from sahi.models.huggingface_segmentation import HuggingfaceSegmentationModel, SegmentationType
from sahi.predict import get_sliced_prediction

from pansight.apps.exporting import export

MASK_BIASES = ("predictor.mask_embed.layers.2.bias", "pixel_decoder.mask_features.bias")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exports")
    ours = predictor("mask2former", backbone="resnet18")
    parameters = dict(ours.model.named_parameters())
    with torch.no_grad():  # an untrained network shall find something: all queries are cats, and masks are large
        parameters["predictor.class_embed.bias"][0] = 10
        for name in MASK_BIASES:
            parameters[name].fill_(1.0)
    ours.save(place / "ours")
    export(place / "ours", place / "hf")
    return place / "hf"


def test_sahi_slices_it(folder: Path) -> None:
    """SAHI drops segments of fewer than 100 pixels; what is left has our names."""
    model = HuggingfaceSegmentationModel(
        model_path=str(folder),
        segmentation_type=SegmentationType.PANOPTIC_SEGMENTATION,
        label_ids_to_fuse=[2],
        confidence_threshold=0.0,
        device="cpu",
    )
    assert model.category_mapping == {0: "cat", 1: "dog", 2: "sky"}
    result = get_sliced_prediction(image(96), model, slice_height=64, slice_width=64, verbose=0)
    assert result.object_prediction_list
    assert {each.category.name for each in result.object_prediction_list} <= {"cat", "dog", "sky"}


def test_cvats_own_function_gets_what_it_reads(folder: Path) -> None:
    """It makes a pipeline, passes a threshold, and reads score, label, mask and `config.label2id`."""
    pipe = transformers.pipeline(task="image-segmentation", model=str(folder))
    assert pipe.model.config.label2id == {category.name: category.id for category in SPACE}
    rows = pipe(Image.fromarray(image()), threshold=0.0)
    assert rows
    for row in rows:
        assert row["label"] in ("cat", "dog", "sky")
        assert 0 <= row["score"] <= 1
        assert np.asarray(row["mask"]).shape == (64, 64)

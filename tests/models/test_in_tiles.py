"""Every kind of model predicts in tiles: the result is legal, and with one tile it is the prediction itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tifffile
import torch
from contract import LABELS, QUERY_MODELS, SMALL, core_first, small, thresholds

from pansight.apps.photos.huge import Tiling, predict_huge
from pansight.data.formats.shapes import Shapes
from pansight.data.images import read_image, write_png
from pansight.engine.infer import ClassScorer
from pansight.engine.predict import Predictor
from pansight.errors import PansightError
from pansight.models import MODELS, build

SIDE = 128


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "shapes.png"
    write_png(path, Shapes(1, SIDE, SIDE, seed=3)[0].image.permute(1, 2, 0).contiguous().numpy())
    return path


def suffix_of(name: str) -> str:
    return ".json" if set(MODELS[name].produces) == {"instances"} else ".tif"


@pytest.mark.slow
@pytest.mark.parametrize("name", core_first(SMALL))
def test_one_tile_is_the_prediction_itself_and_several_are_legal(name: str, image: Path, tmp_path: Path) -> None:
    predictor = Predictor(small(name), name, dict(SMALL[name]), "cpu")
    options = {key: max(0, value) for key, value in thresholds(predictor.model).items() if key != "task"}
    alone = predictor.predict(image, **options)
    one = predict_huge(predictor, image, tmp_path / f"one{suffix_of(name)}", Tiling(SIDE, 0), options)
    assert one.tiles == 1
    many = predict_huge(predictor, image, tmp_path / f"many{suffix_of(name)}", Tiling(64, 32), options)
    assert many.tiles == 9
    if one.table is None:
        assert alone.instances is not None
        rows = json.loads(one.file.read_text())["annotations"]
        assert [row["score"] for row in rows] == pytest.approx(alone.instances.scores.tolist()[: len(rows)], abs=1e-6)
        assert json.loads(many.file.read_text())["annotations"]
        return
    found = tifffile.imread(one.file)
    if alone.panoptic is None:
        assert alone.semantic is not None
        expected = np.array([category.source_id for category in LABELS])[alone.semantic.numpy()]
        assert np.array_equal(found, expected)
    else:
        pairs = np.unique(np.stack([found.ravel(), alone.panoptic.ids.numpy().ravel()]), axis=1).T
        assert len(pairs) == len({*pairs[:, 0].tolist()}) == len({*pairs[:, 1].tolist()})
    table = pyarrow.parquet.read_table(many.table).to_pylist()
    ids, areas = np.unique(tifffile.imread(many.file), return_counts=True)
    void = 0 if alone.panoptic is not None else 255
    assert {row["id"]: row["area"] for row in table} == {
        i: n for i, n in zip(ids.tolist(), areas.tolist()) if i != void
    }
    stuff = [row["category_id"] for row in table if not row["isthing"]]
    assert len(stuff) == len(set(stuff))


@pytest.mark.slow
@pytest.mark.parametrize("name", core_first(QUERY_MODELS))
def test_query_systems_average_class_scores(name: str, image: Path, tmp_path: Path) -> None:
    """A tile and its mirror image, where the task is semantic; panoptic maps have no scores to be averaged."""
    predictor = Predictor(small(name), name, dict(SMALL[name]), "cpu")
    tiling = Tiling(SIDE, 0, flip=True)
    if not isinstance(predictor.model, ClassScorer):
        with pytest.raises(PansightError, match=r"flip, scales, window: .* with task semantic"):
            predict_huge(predictor, image, tmp_path / "map.tif", tiling, {"task": "semantic"})
        return
    result = predict_huge(predictor, image, tmp_path / "map.tif", tiling, {"task": "semantic"})
    photo = read_image(image)
    means = predictor.with_views(flip=True, task="semantic").class_scores([photo])[0]
    ids = np.array([category.source_id for category in LABELS])[means.argmax(0).numpy()]
    assert np.array_equal(tifffile.imread(result.file), ids)
    there, back = (predictor.class_scores([each])[0] for each in (photo, photo[:, ::-1].copy()))
    torch.testing.assert_close(means, (there + back.flip(2)) / 2)
    with pytest.raises(PansightError, match=r"flip, scales, window: .* found .* with task left out"):
        predict_huge(predictor, image, tmp_path / "other.tif", tiling)


def test_a_detector_of_given_regions_is_refused(image: Path, tmp_path: Path) -> None:
    name = "fast_rcnn"
    options = {key: value for key, value in SMALL[name].items() if not key.startswith("proposer")}
    predictor = Predictor(build(name, LABELS, **options), name, options, "cpu")
    with pytest.raises(
        PansightError, match=r"--tile: expected a model that finds regions by itself, .* found fast_rcnn"
    ):
        predict_huge(predictor, image, tmp_path / "found.json", Tiling(SIDE, 0))

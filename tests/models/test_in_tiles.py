"""Every kind of model predicts in tiles: the result is legal, and with one tile it is the prediction itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tifffile
from contract import LABELS, SMALL, core_first, small, thresholds

from pansight.apps.photos.huge import Tiling, predict_huge
from pansight.data.formats.shapes import Shapes
from pansight.data.images import write_png
from pansight.engine.predict import Predictor
from pansight.models import MODELS

SIDE = 128
ENTRIES = [name for name in SMALL if not MODELS[name].borrows]


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "shapes.png"
    write_png(path, Shapes(1, SIDE, SIDE, seed=3)[0].image.permute(1, 2, 0).contiguous().numpy())
    return path


def suffix_of(name: str) -> str:
    return ".json" if set(MODELS[name].produces) == {"instances"} else ".tif"


@pytest.mark.slow
@pytest.mark.parametrize("name", core_first(ENTRIES))
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

"""The parts of a data set and their share: test images are never trained on, and a limit spreads evenly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pansight.apps.cli import main
from pansight.config import Config, DataConfig, override
from pansight.data import Shapes
from pansight.data.dataset import limited
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.engine.assemble import open_data, open_evaluation_data, open_part
from pansight.errors import PansightError


def ids(dataset) -> list:
    return [dataset.image_id(n) for n in range(len(dataset))]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (0, list(range(1, 11))),
        (3, [2, 6, 9]),
        (0.3, [2, 6, 9]),
        (1, [6]),
        (0.01, [6]),
        (10, list(range(1, 11))),
        (99, 10),
    ],
)
def test_a_limit_spreads_evenly(limit, expected):
    found = limited(Shapes(10, 16, 16), limit)
    assert (len(found) if isinstance(expected, int) else ids(found)) == expected


@pytest.mark.parametrize("limit", [-1, 1.5, "-0.1"])
def test_a_limit_is_a_share_or_a_number(limit):
    with pytest.raises(PansightError, match=r"data\.limit: expected 0, a share below 1, or a number of images"):
        override(Config(), {"data.limit": limit})


def test_a_limit_holds_before_the_split_and_for_every_part(tmp_path):
    config = DataConfig(source=str(part(tmp_path, "train", 20)), limit=10, validation_fraction=0.2)
    training, validation, _ = open_data(config)
    assert (len(training), len(validation)) == (8, 2)
    assert sorted(ids(training) + ids(validation)) == ids(limited(Shapes(20, 16, 16), 10))
    both = DataConfig(source="shapes", options={"count": 20, "height": 16, "width": 16}, limit=0.25)
    assert [len(data) for data in open_data(both)[:2]] == [5, 5]
    assert len(open_evaluation_data(both, None)) == 5
    assert len(open_part(both, "test")) == 5


def part(root: Path, name: str, count: int, seed: int = 0) -> Path:
    export_coco_panoptic(Shapes(count, 16, 16, seed), root, name)
    return root


def test_a_test_part_is_recognised_and_never_trained_on(tmp_path):
    root = part(part(tmp_path / "both", "train", 6), "test", 4, seed=1)
    config = DataConfig(source=str(root))
    training, validation, _ = open_data(config)
    assert len(training) + len(validation) == 6
    test = open_part(config, "test")
    assert len(test) == 4
    assert not (test[0].image == training[0].image).all()
    assert len(open_part(config, "train")) == len(training)
    assert len(open_part(config, "val")) == len(validation)
    alone = part(tmp_path / "alone", "test", 4)
    with pytest.raises(
        PansightError, match=r"expected images to train on, found a test part alone; --data\.split test"
    ):
        open_data(DataConfig(source=str(alone)))
    assert len(open_part(replace(config, test_source=str(alone)), "test")) == 4
    with pytest.raises(PansightError, match=r"expected a test part, found train; --data\.test-source DIR"):
        open_part(DataConfig(source=str(part(tmp_path / "one", "train", 4))), "test")
    with pytest.raises(PansightError, match="unknown part of the data 'best'; known: test, train, val"):
        open_part(config, "best")


def test_a_validation_part_alone_is_split(tmp_path):
    training, validation, _ = open_data(DataConfig(source=str(part(tmp_path, "val", 10))))
    assert not set(ids(training)) & set(ids(validation))
    assert len(training) + len(validation) == 10


@pytest.mark.slow
def test_a_run_is_measured_on_its_test_part(tmp_path, capsys):
    out = tmp_path / "run"
    root = part(part(tmp_path / "data", "train", 4), "test", 3, seed=1)
    options = ["--backbone", "resnet10t", "--model.pretrained", "none", "--model.options.fpn-channels", "16"]
    options += ["--model.options.proposals", "20", "--model.options.roi-samples", "8", "--train.precision", "fp32"]
    options += ["--train.steps", "1", "--train.batch-size", "2", "--train.evaluate-every", "0", "--train.trackers", ""]
    assert main(["train", "--data", str(root), "--out", str(out), *options]) == 0
    assert main(["evaluate", str(out), "--part", "test", "--out", str(tmp_path / "test")]) == 0
    assert "3 images of " in capsys.readouterr().out

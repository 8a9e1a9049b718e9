"""Classes are counted from all of the training data: for the weights of a loss, and to show rare images more often."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pansight.apps.cli import main
from pansight.config import Config, ModelConfig, override, read_config
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.data.formats.shapes import Shapes
from pansight.engine import automatic
from pansight.engine.assemble import make_model
from pansight.engine.automatic.counting import (
    REPEATS,
    choose_class_weights,
    choose_repeats,
    count_pixels,
    epoch_length,
    read_repeats,
    told,
    write_repeats,
)
from pansight.errors import PansightError
from pansight.models import build
from pansight.ops.semantic.class_weights import WORDS, class_weights
from pansight.types import LabelSpace, PanopticSegmentation, Sample, Segment
from pansight.weights import save_model

CPU = torch.device("cpu")


class Skewed:
    """50 images of 4×5 pixels: floor everywhere, a cell in every second one, a cat in the last; one class never."""

    labels = LabelSpace.from_names(["cell", "cat", "dog"], ["floor"])

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 50

    def image_id(self, index: int) -> int:
        return index

    def file_name(self, index: int) -> str:
        return f"{index}.png"

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        ids = torch.full((4, 5), 9, dtype=torch.int32)
        segments = [Segment(9, 3)]
        if index % 2 == 0:
            ids[0, :2] = 7
            segments.append(Segment(7, 0, is_crowd=index % 4 == 0))
        if index == 49:
            ids[1, :4] = 8
            segments.append(Segment(8, 1))
        ids[3, 4] = 0
        truth = PanopticSegmentation(ids, tuple(segments))
        return Sample(torch.zeros((3, 4, 5), dtype=torch.uint8), truth, index, (4, 5))


def test_every_image_is_counted_once() -> None:
    data = Skewed()
    pixels = count_pixels(data)
    assert data.read == list(range(50))
    assert pixels.sum(0).tolist() == [50, 4, 0, 50 * 19 - 54]
    assert pixels[49].tolist() == [0, 4, 0, 15]
    assert pixels[0].tolist() == [2, 0, 0, 17]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_becomes_the_numbers_of_its_formula(word: str) -> None:
    data = Skewed()
    config = override(Config(), {"model.name": "unet", "model.options.class_weights": word})
    (choice,) = choose_class_weights(config, data.labels, lambda: count_pixels(data))
    expected = class_weights(word, np.array([50, 4, 0, 896]), np.array([25 * 19, 19, 0, 950]))
    np.testing.assert_allclose(choice.value, expected, rtol=1e-4)
    assert choice.value[2] == 0
    assert choice.reason == f"{word}, counted from all 50 images; 1 of 4 classes never occur"


def test_given_numbers_and_none_are_not_counted() -> None:
    for value in ([1.0, 2.0, 3.0, 4.0], []):
        config = override(Config(), {"model.name": "unet", "model.options.class_weights": value})
        assert choose_class_weights(config, Skewed.labels, lambda: 1 / 0) == []
    assert choose_class_weights(Config(), Skewed.labels, lambda: 1 / 0) == []
    assert choose_repeats(0.0, lambda: 1 / 0) is None
    assert epoch_length(0.0, 50, lambda: 1 / 0) == 50


def test_things_are_counted_together_for_a_head_that_tells_only_stuff_apart() -> None:
    data = Skewed()
    config = override(Config(), {"model.name": "panoptic_fpn", "model.options.class_weights": "enet"})
    (choice,) = choose_class_weights(config, data.labels, lambda: count_pixels(data))
    np.testing.assert_allclose(choice.value, class_weights("enet", np.array([54, 896]), np.array([1, 1])), rtol=1e-4)


def test_data_are_counted_once_for_both() -> None:
    data = Skewed()
    settings = {"model.name": "unet_original", "model.options.class_weights": "enet", "train.repeat_threshold": 0.5}
    settings |= {"train.precision": "fp32", "train.epochs": 2, "train.batch_size": 10}
    config, choices = automatic.choose(override(Config(), settings), data, CPU)
    sampled = len(data.read) - 50
    assert sampled <= 48
    assert [choice.key for choice in choices].count("model.options.class_weights") == 1
    assert len(config.model.options["class_weights"]) == 4
    assert config.train.steps == 11  # 2 · ⌈49 + √25⌉ images, 10 a step


def test_repeats_follow_from_the_rarest_class() -> None:
    factors = choose_repeats(0.5, lambda: count_pixels(Skewed()))
    assert factors is not None
    assert factors[49] == 5  # √(0.5 · 50)
    assert set(factors[:49]) == {1.0}  # half of the images have a cell
    line = "1 of 50 images with rare classes up to 5.0 times, 54 images an epoch (train.repeat_threshold = 0.5)"
    assert told(factors, 0.5) == line


def test_factors_are_kept_in_the_run_folder(tmp_path: Path) -> None:
    assert read_repeats(tmp_path, 0.5, 2) is None
    write_repeats(tmp_path, 0.5, [1.0, 2.5])
    assert read_repeats(tmp_path, 0.5, 2) == [1.0, 2.5]
    assert read_repeats(tmp_path, 0.4, 2) is None  # another threshold
    assert read_repeats(tmp_path, 0.5, 3) is None  # other images
    (tmp_path / REPEATS).write_text("[]")
    with pytest.raises(PansightError, match=r"repeats\.json: expected factors of images"):
        read_repeats(tmp_path, 0.5, 2)


# --- whole runs ------------------------------------------------------------------------------------------------------


def train(out: Path, data: Path, **settings: Any) -> None:
    words = ["train", "--out", str(out), "--data", str(data), "--model", "unet_original"]
    given = {"model.options.width": 2, "model.options.depth": 1, "train.steps": 6, "train.batch_size": 2}
    given |= {
        "train.schedule": "constant",
        "train.precision": "fp32",
        "train.trackers": "",
        "train.evaluate_every": 0,
        "data.workers": 0,
    }
    given |= {key.replace("__", "."): value for key, value in settings.items()}
    for key, value in given.items():
        words += [f"--{key}", str(value)]
    assert main(words) == 0


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    for split, count in (("train", 10), ("val", 2)):
        export_coco_panoptic(Shapes(count, 24, 24, split=split), folder, split)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    import pansight

    return pansight.load(folder).model.state_dict()


def test_counted_numbers_stand_in_config_and_a_resumption_does_not_count(
    tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"model__options__class_weights": "median_frequency", "train__repeat_threshold": 0.9}
    whole, short = tmp_path / "whole", tmp_path / "short"
    train(whole, shapes, **both)
    printed = capsys.readouterr().out
    assert "class_weights = [" in printed
    assert "median_frequency, counted from all 10 images" in printed
    assert "repeated " in printed
    found = read_config(whole / "config.toml").model.options["class_weights"]
    assert len(found) == len(Shapes().labels)
    assert all(isinstance(value, float) for value in found)
    factors = json.loads((whole / REPEATS).read_text())["factors"]
    assert max(factors) > 1
    train(short, shapes, **both, train__steps=3)

    def counting(*_: object) -> None:
        raise AssertionError("counted again")

    monkeypatch.setattr("pansight.apps.commands.preparing.count_pixels", counting)
    assert main(["train", "--resume", "--out", str(short), "--train.steps", "6"]) == 0
    a, b = weights_of(whole), weights_of(short)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_recipe_with_a_word_resumes_with_its_numbers(
    tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[model.options]\nclass_weights = "enet"\n')
    train(tmp_path / "run", shapes, recipe=recipe, train__steps=2)
    assert (
        main(["train", "--resume", "--recipe", str(recipe), "--out", str(tmp_path / "run"), "--train.steps", "3"]) == 0
    )
    assert main(["train", "--resume", "--out", str(tmp_path / "run"), "--model.options.class_weights", "inverse"]) == 2
    assert "--resume cannot change it" in capsys.readouterr().err


def test_weights_of_other_classes_are_not_taken_over(tmp_path: Path) -> None:
    """Fine-tuning on other classes has other weights, or none; on the same ones it has those of the run."""
    options = {"width": 2, "depth": 1, "class_weights": [1.0, 2.0, 3.0, 4.0]}
    model = build("unet_original", Skewed.labels, **options)
    save_model(tmp_path / "old", model, "unet_original", options)
    config = ModelConfig("unet_original", weights=str(tmp_path / "old"))
    other = LabelSpace.from_names(["cell"], ["floor"])
    for labels, expected in ((other, None), (Skewed.labels, options["class_weights"])):
        tuned, _, found, _ = make_model(config, labels)
        assert found.get("class_weights") == expected
        assert (tuned.criterion.class_weights is None) == (expected is None)
    given = replace(config, options={"class_weights": [5.0, 6.0]})
    assert make_model(given, other)[0].criterion.class_weights.tolist() == [5, 6]


@pytest.mark.parametrize("value", ["median", "1,2", "[1, -1, 1, 1]"])
def test_other_words_and_wrong_numbers_are_refused_in_a_line(
    tmp_path: Path, shapes: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        train(tmp_path / "run", shapes, model__options__class_weights=value)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "class_weights" in line
    assert not (tmp_path / "run").exists()

"""Building from settings: data parts, augmentation, fine-tuning, and what is chosen for open settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pansight
from pansight import models
from pansight.apps.cli import main
from pansight.config import AugmentConfig, Config, DataConfig, ModelConfig, override
from pansight.data import Shapes
from pansight.data.loader import collate
from pansight.engine import automatic
from pansight.engine.assemble import make_model, make_transform, open_data, relabel
from pansight.engine.automatic import backbone
from pansight.errors import PansightError
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace, PanopticSegmentation, Sample, Segment

TINY = {
    "backbone": "resnet18",
    "short": 0,
    "fpn_channels": 16,
    "box_features": 16,
    "mask_convs": 1,
    "mask_channels": 16,
}
TINY |= {"proposals": 20, "roi_samples": 8, "detections": 5, "frozen_bn": False, "anchor_sizes": [8, 16, 32, 64, 128]}
CPU = torch.device("cpu")


class Squares:
    """Images of given sizes, each with `count` squares of `side` pixels in a row."""

    def __init__(self, sizes: list[tuple[int, int]], side: int = 10, count: int = 1):
        self.sizes, self.side, self.count = sizes, side, count
        self.labels = LabelSpace.from_names(["square"])

    def __len__(self) -> int:
        return len(self.sizes)

    def image_id(self, index: int) -> int:
        return index

    def file_name(self, index: int) -> str:
        return f"{index}.png"

    def __getitem__(self, index: int) -> Sample:
        height, width = self.sizes[index]
        ids = torch.zeros((height, width), dtype=torch.int32)
        for n in range(self.count):
            ids[: self.side, n * self.side : (n + 1) * self.side] = n + 1
        truth = PanopticSegmentation(ids, tuple(Segment(n + 1, 0) for n in range(self.count)))
        return Sample(torch.zeros((3, height, width), dtype=torch.uint8), truth, index, (height, width))


def chosen(config: Config, dataset, **more) -> tuple[Config, dict]:
    result, choices = automatic.choose(config, dataset, CPU, **more)
    return result, {c.key: c.value for c in choices}


def test_small_images_of_one_size_are_used_whole():
    config, found = chosen(override(Config(), {"model.pretrained": "none"}), Squares([(64, 64)] * 100))
    assert (config.augment.crop, config.model.options["short"]) == (0, 0)
    assert config.model.options["anchor_sizes"] == [8, 16, 32, 64, 128]  # squares of 10 pixels
    assert config.train.batch_size == found["train.batch_size"] == 8
    assert config.train.steps == 1000
    assert config.train.lr == 5e-4
    assert config.train.warmup_steps == 50
    assert config.train.evaluate_every == 200
    assert config.train.precision == config.evaluate.precision != "auto"


def test_there_are_as_many_anchors_as_levels_of_the_pyramid():
    efficientps = override(Config(), {"model.name": "efficientps", "model.pretrained": "none"})
    config, _ = chosen(efficientps, Squares([(64, 64)] * 10))
    assert config.model.options["anchor_sizes"] == [8, 16, 32, 64]


def test_images_of_many_sizes_are_cropped_and_large_ones_shrunk():
    none = override(Config(), {"model.pretrained": "none"})
    config, _ = chosen(none, Squares([(200, 250), (300, 300), (100, 130)]))
    assert (config.augment.crop, config.augment.fit, config.model.options["short"]) == (256, False, 0)
    assert config.train.batch_size <= 8
    config, _ = chosen(none, Squares([(1500, 2000), (1500, 2001)], side=80))
    assert (config.augment.crop, config.augment.fit, config.augment.scale) == (512, False, (0.7, 1.4))
    assert (config.model.options["short"], config.model.options["long"]) == (384, 512)
    assert config.model.options["anchor_sizes"][0] == 16  # 80 pixels, shrunk to 20


def test_crowded_images_get_more_detections():
    config, _ = chosen(override(Config(), {"model.pretrained": "none"}), Squares([(16, 900)] * 2, side=8, count=100))
    assert config.model.options["detections"] == config.evaluate.max_detections == 200


def test_explicit_values_stand():
    given = {"train": {"steps": 7, "batch_size": 3, "lr": 0.5, "warmup_steps": 0, "evaluate_every": 0}}
    given |= {"model": {"pretrained": "none", "options": {"short": 100, "anchor_sizes": [1, 2, 3, 4, 5]}}}
    given |= {"augment": {"crop": 64}, "train.precision": "fp32", "data.workers": 0, "evaluate.precision": "fp32"}
    config, found = chosen(override(Config(), given), Squares([(64, 64)] * 4))
    network = {f"model.options.{option}" for option in models.entry("panoptic_fpn").small}
    assert set(found) - {"model.backbone"} == {"model.options.min_stuff_area", *network}
    assert override(config, given) == config


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("detr", 600, (1e-4, 0.1, 1.0, 1e-4, 0.1)),
        ("maskformer", 600, (1e-4, 0.1, 1.0, 0.05, 0.01)),
        ("mask2former_r50", 600, (1e-4, 0.1, 1.0, 0.05, 0.01)),
        ("mask2former", 100, (5e-5, 0.1, 1.0, 0.05, 0.01)),
        ("eomt", 600, (1e-4, 1.0, 0.8, 0.05, 0.01)),
        ("panoptic_fpn", 600, (5e-4, 1.0, 1.0, 1e-4, 0.0)),
    ],
)
def test_systems_have_their_training_defaults(tmp_path, name, count, expected):
    """lr, backbone_lr_factor, layer_decay, weight_decay, clip_norm; a backbone from scratch is not held back."""
    squares = Squares([(64, 64)] * count)
    keys = ("lr", "backbone_lr_factor", "layer_decay", "weight_decay", "clip_norm")
    tuned, found = chosen(override(Config(), {"model.name": name, "model.weights": "some/file"}), squares)
    peak = 2e-4 if name == "panoptic_fpn" else expected[0]
    assert tuple(getattr(tuned.train, key) for key in keys) == (peak, *expected[1:])
    assert ("train.clip_norm" in found) == (name != "panoptic_fpn")  # plain values need no words
    scratch, _ = chosen(override(Config(), {"model.name": name, "model.pretrained": "none"}), squares)
    assert (scratch.train.backbone_lr_factor, scratch.train.layer_decay) == (1.0, 1.0)
    assert (scratch.train.weight_decay, scratch.train.clip_norm) == expected[3:]
    given = {"model.name": name, "train": dict(zip(keys, (0.5, 0.25, 0.75, 0.0, 0.0)))}
    kept, found = chosen(override(Config(), given | {"model.weights": "some/file"}), squares)
    assert [getattr(kept.train, key) for key in keys] == [0.5, 0.25, 0.75, 0.0, 0.0]
    assert not {f"train.{key}" for key in keys} & set(found)


def test_crowded_images_get_more_queries():
    """110 objects and the stuff around them."""
    crowded = Squares([(16, 900)] * 2, side=8, count=110)
    model = {"model.name": "mask2former", "model.pretrained": "none"}
    config, _ = chosen(override(Config(), model), crowded)
    assert config.model.options["queries"] == 200
    config, _ = chosen(override(Config(), model), Squares([(64, 64)]))
    assert "queries" not in config.model.options
    _, choices = automatic.choose(override(Config(), model | {"model.options.queries": 100}), crowded, CPU)
    (warning,) = [c for c in choices if c.key == "model.options.queries"]
    assert warning.value == 100
    assert "as given, but images have up to 110 segments" in warning.reason


def test_a_plain_vit_has_a_square_and_no_packaged_weights(monkeypatch):
    def offline(name, pretrained):
        raise PansightError("no route", where=f"backbone {name}", code="offline_weights")

    monkeypatch.setattr(backbone, "vit_backbone", offline)
    config, choices = automatic.choose(override(Config(), {"model.name": "eomt"}), Squares([(50, 90)] * 4), CPU)
    assert (config.model.backbone, config.model.pretrained) == (backbone.SMALL_VIT, "none")
    assert config.model.options["size"] == 96
    assert any("a ViT from scratch needs far more images" in choice.reason for choice in choices)
    config, _ = chosen(override(Config(), {"model.name": "eomt"}), Squares([(50, 90), (60, 61)]))
    assert config.model.options["size"] == config.augment.crop == 96


def test_limited_time_means_as_many_steps_as_fit():
    config, _ = chosen(override(Config(), {"model.pretrained": "none", "train.max_minutes": 1}), Squares([(64, 64)]))
    assert (config.train.steps, config.train.warmup_steps) == (0, -1)  # as many as there will have been
    assert config.train.evaluate_every == -1


def test_batch_is_a_multiple_of_the_processes():
    config, _ = chosen(override(Config(), {"model.pretrained": "none"}), Squares([(64, 64)] * 9), world=3)
    assert config.train.batch_size == 6


def test_without_a_network_the_backbone_starts_from_nothing(monkeypatch):
    def offline(name, pretrained):
        assert backbone.hub.HF_HUB_OFFLINE  # or the client would retry for a minute
        raise PansightError("no route", where=f"backbone {name}", code="offline_weights")

    monkeypatch.setattr(backbone, "timm_backbone", offline)
    monkeypatch.setattr(backbone, "hub_answers", lambda: False)
    config, _ = chosen(override(Config(), {"model.backbone": "resnet18"}), Squares([(64, 64)]))
    assert config.model.pretrained == "none"
    assert config.model.options["frozen_bn"] is False


def test_only_a_lack_of_weights_makes_the_backbone_start_from_nothing(monkeypatch):
    def refused(name, pretrained):
        # the same words, another kind of error
        raise PansightError("timm's weights cannot be downloaded", where=f"backbone {name}")

    monkeypatch.setattr(backbone, "timm_backbone", refused)
    with pytest.raises(PansightError, match="backbone resnet18"):
        chosen(override(Config(), {"model.backbone": "resnet18"}), Squares([(64, 64)]))


def test_parts_of_the_data():
    config = DataConfig(source="shapes", options={"count": 5, "height": 32, "width": 32})
    training, validation, note = open_data(config)
    assert (len(training), len(validation)) == (5, 5)
    assert note == "5 images of shapes, part val"
    assert not torch.equal(training[0].image, validation[0].image)
    assert len(open_data(replace(config, validation_options={"count": 2}))[1]) == 2
    with pytest.raises(PansightError, match=r"data.source: expected a folder or file"):
        open_data(DataConfig())


def test_relabelling_goes_by_name():
    dataset = Shapes(3, 32, 32)
    other = LabelSpace.from_names(["circle", "extra", "triangle", "square"], ["background"])
    moved = relabel(dataset, other, "here")
    for index in range(3):
        before, after = dataset[index], moved[index]
        names = [
            [space[s.category].name for s in x.truth.segments]
            for space, x in ((dataset.labels, before), (other, after))
        ]
        assert names[0] == names[1]
    assert relabel(dataset, dataset.labels, "here") is dataset
    with pytest.raises(
        PansightError, match=r"here: expected classes among the 1 of the model \(square\), found 'circle'"
    ):
        relabel(dataset, LabelSpace.from_names(["square"]), "here")


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"crop": 48}, (48, 48)),
        ({"crop": 48, "scale": (0.3, 0.4)}, (48, 48)),
        ({"crop": 48, "fit": True, "scale": (0.1, 2.0)}, (48, 48)),
        ({"crop": 0}, (32, 64)),
        ({"crop": 0, "short_sides": (24, 24)}, (32, 48)),
        ({"crop": 32, "vflip": 0.5, "rot90": True, "elastic": 1.0, "photometric": 1.0}, (32, 32)),
        ({"crop": 0, "elastic": 1.0, "elastic_grid": 3, "elastic_magnitude": 10.0}, (32, 64)),
    ],
)
def test_augmentation(settings, shape):
    sample = Shapes(1, 32, 64)[0]
    transform, divisor = make_transform(AugmentConfig(**settings), ResizeRule(0, 0, 16))
    for seed in range(4):
        batch = collate([transform(sample, np.random.default_rng(seed))], divisor)
        assert tuple(batch.images.shape[2:]) == shape
        assert tuple(batch.truths[0].ids.shape) == (int(batch.valid.any(2).sum()), int(batch.valid.any(1).sum()))


def test_fine_tuning_keeps_classes_by_name(tmp_path, capsys):
    """A model of (square, circle | background) becomes one of (circle, star | background)."""
    torch.manual_seed(0)
    old = LabelSpace.from_names(["square", "circle"], ["background"])
    new = LabelSpace.from_names(["circle", "star"], ["background"])
    model, name, options, _ = make_model(ModelConfig(options=TINY, pretrained="none"), old)
    predictor = pansight.Predictor(model, name, options, device="cpu")
    predictor.save(tmp_path / "old")
    tuned, _, tuned_options, lines = make_model(ModelConfig(weights=str(tmp_path / "old")), new)
    assert tuned_options == options
    assert tuned.labels == new
    before, after = model.state_dict(), tuned.state_dict()
    assert torch.equal(before["backbone.features.conv1.weight"], after["backbone.features.conv1.weight"])
    head = "rcnn.mask_head.predictor.weight"
    assert torch.equal(after[head][0], before[head][1])  # circle
    assert not torch.equal(after[head][1], before[head][0])  # a star is no square
    assert any("classes kept: circle" in line for line in lines)
    with pytest.raises(PansightError, match=r"expected weights of mask_rcnn, found panoptic_fpn"):
        make_model(ModelConfig(name="mask_rcnn", weights=str(tmp_path / "old")), new)
    out = tmp_path / "run"
    command = ["train", "--weights", str(tmp_path / "old"), "--data", "shapes", "--data.options.count", "4"]
    command += ["--data.options.height", "64", "--data.options.width", "64", "--train.steps", "1"]
    command += ["--train.batch-size", "2", "--train.evaluate-every", "0", "--train.trackers", "", "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "weights    " in said
    assert "classes kept: square, circle" in said
    assert json.loads((out / "evaluation.json").read_text())["All"]["n"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["panoptic_fpn", *(pytest.param(n, marks=pytest.mark.long) for n in ("mask_rcnn", "faster_rcnn"))]
)
def test_real_models_resume_to_the_same_bits(tmp_path, name):
    options = {k: v for k, v in TINY.items() if k in models.builder_options(name)}
    settings = {"model": {"pretrained": "none", "options": options}, "evaluate.limit": 1, "evaluate.precision": "fp32"}
    settings |= {"data.options": {"count": 4, "height": 64, "width": 64}, "train.precision": "bf16"}
    settings |= {"train": {"steps": 4, "batch_size": 2, "lr": 1e-3, "evaluate_every": 0, "trackers": [], "seed": 3}}
    whole = pansight.train(model=name, data="shapes", out=tmp_path / "whole", settings=settings)
    first = {**settings, "train.checkpoint_every": 2}
    with pytest.MonkeyPatch.context() as patch:
        real = models.MODELS[name].build

        def crashing(labels, **given):
            model = real(labels, **given)
            loss, calls = model.loss, iter(range(3))

            def crash(batch, totals=None):
                next(calls)  # the fourth raises StopIteration, which stands for a crash
                return loss(batch, totals)

            model.loss = crash
            return model

        crashing.__signature__ = __import__("inspect").signature(real)
        patch.setitem(models.MODELS, name, replace(models.MODELS[name], build=crashing))
        with pytest.raises(StopIteration):
            pansight.train(model=name, data="shapes", out=tmp_path / "broken", settings=first)
    resumed = pansight.train(out=tmp_path / "broken", resume=True)
    a, b = (pansight.load(run.folder).model.state_dict() for run in (whole, resumed))
    assert all(torch.equal(a[key], b[key]) for key in a)
    if name != "faster_rcnn":
        assert whole.evaluation["All"] == resumed.evaluation["All"]


def test_tensorboard_by_default_where_installed(tmp_path):
    pytest.importorskip("tensorboard")
    settings = {"model": {"pretrained": "none", "options": TINY}, "evaluate.limit": 1, "train.log_every": 1}
    settings |= {"data.options": {"count": 2, "height": 64, "width": 64}, "train": {"steps": 1, "batch_size": 1}}
    run = pansight.train(data="shapes", out=tmp_path / "run", settings=settings)
    assert list(Path(run.folder).rglob("events.out.tfevents.*"))

"""What is chosen follows from the data, the machine and the model's entry, and training sees what is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pansight import models
from pansight.config import AugmentConfig, Config, override
from pansight.data.loader import collate
from pansight.engine import automatic
from pansight.engine.assemble import make_model, make_transform
from pansight.engine.automatic.checks import check_together
from pansight.engine.automatic.network import PER_OBJECT
from pansight.errors import PansightError
from pansight.ops.resize import ResizeRule
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Sample, Segment

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
GENERAL = [name for name, entry in models.MODELS.items() if not entry.variant_of and not entry.networks]
RULE = ("short", "long", "size")


class Blocks:
    """`count` images of one size with a square in each, a quarter as wide as the image, or `objects` in a row."""

    def __init__(self, height: int, width: int, count: int = 4, objects: int = 1, stuff: bool = True):
        self.size, self.count, self.objects = (height, width), count, objects
        self.labels = LabelSpace.from_names(["square"], ["floor"] if stuff else [])

    def __len__(self) -> int:
        return self.count

    def image_id(self, index: int) -> int:
        return index

    def file_name(self, index: int) -> str:
        return f"{index}.png"

    def __getitem__(self, index: int) -> Sample:
        height, width = self.size
        ids = torch.zeros(self.size, dtype=torch.int32)
        side = max(1, min(height // 4, width // self.objects))
        for n in range(self.objects):
            ids[:side, n * side : (n + 1) * side] = n + 1
        segments = tuple(Segment(n + 1, 0) for n in range(self.objects))
        return Sample(
            torch.zeros((3, *self.size), dtype=torch.uint8), PanopticSegmentation(ids, segments), index, self.size
        )


def choose(dataset: Any, device: torch.device = CPU, rule: ResizeRule | None = None, **given: Any) -> Config:
    settings = {
        "model.pretrained": "none",
        "train.precision": "fp32",
        **{key.replace("__", "."): value for key, value in given.items()},
    }
    return automatic.choose(override(Config(), settings), dataset, device, 1, rule)[0]


class Crowds(Blocks):
    """Images of which every object is a crowd, in the map and among the objects."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        truth = replace(sample.truth, segments=tuple(s._replace(is_crowd=True) for s in sample.truth.segments))
        boxes = torch.tensor([[0.0, 0, 10, 10]])
        crowd = torch.ones(1, dtype=torch.bool)
        objects = Instances(boxes, torch.zeros(1, dtype=torch.int64), torch.ones(1), None, crowd)
        return replace(sample, truth=truth, instances=objects if index % 2 else None)


def test_crowds_are_no_objects():
    stats = automatic.statistics(Crowds(40, 60))
    assert (stats.most_objects, stats.object_small, stats.object_large) == (0, 0, 0)


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("size", [(64, 64), (60, 90), (900, 1200)])
def test_the_size_rule_is_a_function_of_the_data_alone(name, size):
    """Whatever crop, scale or fit is given."""
    images = Blocks(*size)
    entry = models.entry(name)
    quick = {f"model__options__{key}": value for key, value in entry.tiny.items() if key not in (*RULE, "square")}
    quick = {key.replace("options__backbone", "backbone"): value for key, value in quick.items()}
    given: list[dict[str, Any]] = [{"augment__crop": crop} for crop in (0, 32, 256)]
    given += [
        {"augment__scale": [0.5, 2.0]},
        {"augment__fit": True, "augment__crop": 128},
        {"augment__short_sides": [48]},
    ]
    plain = choose(images, model__name=name, **quick)
    rule = {key: plain.model.options[key] for key in RULE if key in plain.model.options}
    assert rule
    for settings in given:
        config = choose(images, model__name=name, **quick, **settings)
        assert {key: config.model.options[key] for key in RULE if key in config.model.options} == rule, settings
        for key, value in settings.items():
            found = getattr(config.augment, key.removeprefix("augment__"))
            assert (list(found) if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize("rule", [ResizeRule(0, 0), ResizeRule(32, 64), ResizeRule(128, 256), ResizeRule(96, 96, 96)])
@pytest.mark.parametrize("crop", [0, 48, 100])
def test_objects_are_learnt_at_the_size_at_which_they_are_measured(rule, crop):
    """A band across the image stays whole in some crop, or the crop is smaller than the band."""
    sample = Blocks(64, 64)[0]
    sample.truth.ids.zero_()
    sample.truth.ids[24:40] = 1
    transform, divisor = make_transform(AugmentConfig(crop=crop, hflip=0), rule)
    measured = round(16 * rule.target(64, 64)[0] / 64)
    sides = []
    for seed in range(20):
        seen = transform(sample, np.random.default_rng(seed)).truth.ids
        sides.append(int((seen == 1).any(1).sum()))
    assert max(sides) == min(measured, crop or measured)
    batch = collate([transform(sample, np.random.default_rng(0))], divisor)
    side = batch.images.shape[2]
    assert side % rule.divisor == 0
    assert side < max(crop, rule.target(64, 64)[0]) + rule.divisor  # no more padding than the model asks for


def test_a_network_for_a_square_never_gets_a_larger_one():
    transform, divisor = make_transform(AugmentConfig(crop=256, scale=(2.0, 2.0)), ResizeRule(64, 64, 64))
    batch = collate([transform(Blocks(64, 64)[0], np.random.default_rng(0))], divisor)
    assert tuple(batch.images.shape[2:]) == (64, 64)


def test_a_crop_that_no_image_fills_is_refused():
    with pytest.raises(PansightError, match=r"augment\.crop: expected at most 4096 pixels, found 20000 for images of"):
        choose(Blocks(64, 64), augment__crop=20000)


def test_weights_bring_the_rule_that_crop_and_batch_go_by():
    given = {"model__name": "mask_rcnn", "model__weights": "some/file"}
    config = choose(Blocks(480, 640), rule=ResizeRule(800, 1333), **given)
    assert config.model.options == {}
    assert (config.augment.crop, config.augment.fit) == (512, False)
    config = choose(Blocks(64, 64), rule=ResizeRule(640, 640, 640), **given | {"model__name": "eomt"})
    assert config.augment.crop == 640
    assert config.train.batch_size == 2


def test_a_scale_that_is_never_measured_is_told():
    settings = override(Config(), {"model.pretrained": "none", "augment.crop": 256, "augment.fit": True})
    _, choices = automatic.choose(settings, Blocks(64, 64), CPU)
    (told,) = [choice for choice in choices if choice.key == "augment.fit"]
    assert told.value is True
    assert told.reason == "as given, but objects are then learnt at 4 to 4 times the size that they are measured at"


@pytest.mark.parametrize("name", GENERAL)
def test_a_network_on_the_cpu_is_small_and_open_options_alone_are_chosen(name):
    small = models.entry(name).small
    known = models.builder_options(name)
    assert small
    assert set(small) <= set(known)
    config = choose(Blocks(64, 64), model__name=name)
    assert {key: config.model.options[key] for key in small} == dict(small)
    first = next(iter(small))
    kept = choose(Blocks(64, 64), model__name=name, **{f"model__options__{first}": known[first]})
    assert kept.model.options[first] == known[first]
    large = choose(Blocks(64, 64, 600), torch.device("cuda"), model__name=name)
    assert not set(small) & set(large.model.options)
    few = choose(Blocks(64, 64, 40), torch.device("cuda"), model__name=name)
    assert set(small) <= set(few.model.options)
    fixed = choose(Blocks(64, 64), model__name=name, model__weights="some/file")
    assert not set(small) & set(fixed.model.options)


def test_published_networks_stay_as_they_are():
    assert not any(entry.small for entry in models.MODELS.values() if entry.variant_of)


def test_a_small_network_has_enough_for_crowded_images():
    config = choose(Blocks(32, 400, objects=50), model__name="panoptic_fpn")
    assert config.model.options["proposals"] == 512
    assert config.model.options["roi_samples"] == 208
    assert set(PER_OBJECT) <= set(models.builder_options("panoptic_fpn"))


@pytest.mark.parametrize("name", [name for name in GENERAL if models.entry(name).small])
def test_the_chosen_network_learns_a_step(name):
    images = Blocks(32, 32)
    tiny = models.entry(name).tiny
    backbone = {"model__backbone": tiny["backbone"]} if "backbone" in tiny else {}
    borrowed = {f"model__options__{key}": tiny[key] for key in ("proposer", "proposer_options") if key in tiny}
    config = choose(images, model__name=name, **backbone, **borrowed)
    model = make_model(config.model, images.labels)[0]
    transform, divisor = make_transform(config.augment, model.input.resize)
    batch = collate([transform(images[0], np.random.default_rng(0))] * 2, divisor)
    assert torch.stack(list(model.loss(batch).values())).isfinite().all()


def test_weights_of_a_fixed_backbone_bring_its_width():
    assert choose(Blocks(32, 32), model__name="segnet").model.options["width"] == 16
    assert "width" not in choose(Blocks(32, 32), model__name="segnet", model__pretrained="timm").model.options


def test_a_detector_says_that_it_learns_no_stuff():
    _, choices = automatic.choose(override(Config(), {"model.name": "detr"}), Blocks(64, 64), CPU)
    (told,) = [choice for choice in choices if choice.key == "model.options.stuff"]
    assert told.value is False
    assert "--model.options.stuff true" in told.reason
    config = choose(Blocks(64, 64, stuff=False), model__name="detr")
    assert "stuff" not in config.model.options
    assert "stuff" not in choose(Blocks(64, 64), model__name="detr_panoptic").model.options


HEADS = ("class_embed", "bbox_embed")


@pytest.mark.parametrize("stuff", [False, True])
def test_a_frozen_head_that_was_never_taught_is_named(stuff):
    labels = LabelSpace.from_names(["square"], ["floor"])
    tiny = dict(models.entry("detr").tiny)
    config = override(Config(), {"model": {"name": "detr_panoptic", "weights": "some/file", "options": tiny}}).model
    source = models.build("detr", labels, **tiny), "detr", {**tiny, "stuff": stuff}

    def warnings(labels: LabelSpace, freeze: tuple[str, ...]) -> list[str]:
        return [line for line in make_model(config, labels, source, freeze)[3] if line.startswith("warning")]

    told = warnings(labels, HEADS)
    assert len(told) == (not stuff)
    if not stuff:
        assert told[0].startswith("warning: class_embed is frozen and was never taught floor, which will not be found")
    assert not warnings(labels, ("backbone",))
    (told,) = warnings(LabelSpace.from_names(["square", "star"]), HEADS)
    assert "never taught star, which" in told


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"augment.fit": True, "augment.crop": 0}, "augment.fit: expected augment.crop with it"),
        ({"augment.fit": True, "augment.short_sides": [100]}, "augment.fit: expected images fitted into the crop or"),
        ({"augment.short_sides": [0]}, "augment.short_sides: expected sides of at least 1 pixel"),
        ({"train.accumulate": 4, "train.batch_size": 2}, r"train.accumulate: expected at most train.batch_size \(2\)"),
        (
            {"train.layer_decay": 0.8},
            "train.layer_decay: expected a plain ViT of several blocks, found the backbone of",
        ),
        ({"data.validation_split": "train"}, "data.validation_split: expected another part than that of training"),
        ({"data.test_split": "train"}, "data.test_split: expected another part than that of training, found 'train'"),
        ({"data.test_split": "val"}, "data.test_split: expected another part than that of validation, found 'val'"),
        ({"data.format": "shapes", "data.source": "D"}, "data.format: expected the format of files, found shapes"),
        (
            {"model.name": "mask2former_r50", "model.backbone": "resnet18"},
            "model.backbone: expected a model that leaves",
        ),
    ],
)
def test_settings_that_cannot_work_together_are_refused(settings, complaint):
    with pytest.raises(PansightError, match=complaint):
        check_together(override(Config(), settings))


def test_every_recipe_works_together():
    from pansight.config import read_recipe, recipes

    for name in recipes():
        check_together(read_recipe(name))

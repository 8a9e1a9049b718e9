"""Every entry of MODELS keeps the contract of contract.py."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import (
    FULL_SIZE,
    LABELS,
    PUBLISHED,
    QUERY_MODELS,
    SEMANTIC,
    SMALL,
    assert_close,
    assert_legal,
    assert_same_batch,
    clone,
    core_first,
    flat,
    mixed_batch,
    random_sample,
    shapes_batch,
    small,
    stuff_batch,
    thresholds,
    void_batch,
)

from pansight.config import TrainConfig
from pansight.data.formats.shapes import LABELS_VOID
from pansight.data.loader import collate
from pansight.engine.optim import parameter_groups
from pansight.errors import PansightError
from pansight.models import MODELS, build, builder_options, settled_entry
from pansight.models.instances.fcis import FCISHead
from pansight.nn.rcnn.two_stage import RCNN
from pansight.types import Batch, LabelSpace
from pansight.weights import load_model, save_model
from pansight.weights.transfer import _rows_of_tensors

EVERY_SMALL = pytest.mark.parametrize("name", SMALL)
FEW = ("mask_rcnn_r50_tv_v2", "panoptic_fpn_r50_d2", "upsnet_r50_coco", "panoptic_deeplab_r50_cityscapes")
"""Of the published networks, those that are run at full size in `make test-all`."""
CORE_FIRST = pytest.mark.parametrize("name", core_first(SMALL))
EVERY_QUERY_MODEL = pytest.mark.parametrize("name", QUERY_MODELS)
EVERY_DETECTOR = pytest.mark.parametrize("name", [n for n in SMALL if "instances" in MODELS[n].produces])

IDLE = (
    # DETR's queries start from zero, so the first self-attention has nothing but its biases, zero themselves
    "decoder.layers.0.self_attn.in_proj_weight",
    "decoder.layers.0.self_attn.out_proj.weight",
    "decoder.layers.0.norm1.weight",
    # deformable attention begins with weights of zero on what a place says of itself
    "pixel_decoder.transformer.level_embed",
)
"""Parameters without an effect before the first step."""
STARTS_FROM_ZERO = ("fcn", "fcn_vgg16")
"""Models with layers that start from zero (the classifiers of FCN, the last norm of each block of timm's ResNets), so
that nothing before these has an effect before the first step: their parameters are moved a little first."""


def test_the_sweep_is_complete() -> None:
    """Every entry is general, with tiny options, or names the general one whose sizes it fixes."""
    for name, entry in MODELS.items():
        assert bool(entry.tiny) != bool(entry.variant_of), name
        if general := MODELS.get(entry.variant_of):
            assert not general.variant_of, name
            assert entry.architecture == general.architecture, name
    assert min(map(len, (SMALL, QUERY_MODELS, FULL_SIZE, PUBLISHED, SEMANTIC))) > 0
    assert set(MODELS) == {*SMALL, *FULL_SIZE, *PUBLISHED, *SEMANTIC}


def test_entries_speak_of_options_that_there_are() -> None:
    """One that the builder lacks would be passed over in silence."""
    for name, entry in MODELS.items():
        assert {*entry.adapts, *entry.tiny} <= set(builder_options(name)), name
        assert not entry.backbone or "backbone" in builder_options(name), name
        assert ("pretrained" in entry.adapts) == ("pretrained" in builder_options(name)), name


@EVERY_SMALL
def test_entries_speak_of_what_the_models_have(name: str) -> None:
    entry, model = MODELS[name], small(name)
    parameters = [key for key, _ in model.named_parameters()]
    assert {*entry.queries, *entry.positions} <= {*model.state_dict()}
    assert any(key.startswith(entry.rates.backbone) for key in parameters)
    assert all(any(key.startswith(start) for key in parameters) for start in entry.rates.above_blocks)
    assert not entry.rates.block or any(re.match(entry.rates.block, key) for key in parameters)
    assert bool(entry.tasks) == ("task" in inspect.signature(model.decode).parameters)


OTHER_ROWS = [n for n, e in MODELS.items() if e.variant_of and e.class_rows != MODELS[e.variant_of].class_rows]


@pytest.mark.parametrize("name", [*SMALL, *OTHER_ROWS])
def test_class_rows_are_those_of_the_tensors(name: str) -> None:
    """One name a row, of every tensor whose rows grow with the classes."""
    more = LabelSpace.from_names(["a", "b", "c", "d", "e"], ["f", "g", "h"])
    with torch.device("meta"):
        found, grown = (build(name, labels, **MODELS[name].tiny).state_dict() for labels in (LABELS, more))
    known = _rows_of_tensors(settled_entry(name, MODELS[name].tiny).class_rows, grown)
    assert set(known) == {key for key, tensor in found.items() if tensor.shape != grown[key].shape}
    for key, rows in known.items():
        assert len(rows(more)) == len(grown[key]), key


@EVERY_SMALL
def test_loss_is_finite_and_reaches_every_parameter(name: str) -> None:
    model = small(name).train()
    if name in STARTS_FROM_ZERO:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    losses = model.loss(shapes_batch())
    assert losses
    for key, value in losses.items():
        assert value.shape == (), key
        assert value.isfinite(), key
        assert value >= 0, key
    sum(losses.values()).backward()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert len(trained) > 2
    for key, parameter in trained.items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0 or key.endswith(IDLE), key


@pytest.mark.slow
@CORE_FIRST
@pytest.mark.parametrize("make_batch", [void_batch, stuff_batch, mixed_batch])
def test_batches_without_objects_train(name: str, make_batch: Callable[[], Batch]) -> None:
    """Gradients exist for every parameter, which distributed training waits for; none is NaN."""
    model = small(name).train()
    total = sum(model.loss(make_batch()).values())
    assert total.isfinite()
    total.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


@EVERY_SMALL
def test_loss_depends_on_the_seed_alone(name: str) -> None:
    model, batch = small(name).train(), shapes_batch()
    totals: list[float] = []
    for _ in range(2):
        torch.manual_seed(5)
        totals.append(sum(model.loss(batch).values()).item())
    assert totals[0] == totals[1]


@pytest.mark.slow
@CORE_FIRST
def test_loss_in_half_precision(name: str) -> None:
    model, batch = small(name).train(), shapes_batch()
    torch.manual_seed(5)
    full = sum(model.loss(batch).values()).item()
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = sum(model.loss(batch).values())
    assert half.dtype == torch.float32  # losses are summed where 3 digits do not suffice
    assert half.item() == pytest.approx(full, rel=0.1)
    half.backward()


@EVERY_SMALL
def test_inputs_are_left_alone(name: str) -> None:
    model, batch = small(name), shapes_batch()
    kept = clone(batch)
    model.train().loss(batch)
    assert_same_batch(batch, kept)
    with torch.inference_mode():
        outputs = model.eval()(batch.images, batch.valid)
        assert_same_batch(batch, kept)
        before = [tensor.clone() for tensor in flat(outputs)]
        first = model.decode(outputs, batch.sizes, **thresholds(model))
        second = model.decode(outputs, batch.sizes, **thresholds(model))
    assert len(before) >= 2
    assert all(torch.equal(a, b) for a, b in zip(before, flat(outputs), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(flat(first), flat(second), strict=True))


@EVERY_SMALL
def test_predictions_are_legal_at_the_sizes_asked_for(name: str) -> None:
    """Odd, tiny, long and thin images in one batch; files larger and smaller than what the network saw."""
    model = small(name).eval()
    sides = [(96, 96), (33, 65), (1, 1), (1, 150), (150, 1)]
    batch = collate([random_sample(h, w, k) for k, (h, w) in enumerate(sides)])
    sizes = [(96, 96), (67, 131), (1, 1), (3, 449), (75, 1)]
    with torch.inference_mode():
        predictions = model.decode(model(batch.images, batch.valid), sizes, **thresholds(model))
    assert len(predictions) == len(sizes)
    for prediction, size in zip(predictions, sizes):
        assert_legal(prediction, size, LABELS)
    found = predictions[0]  # what it declares, and something of it, else nothing above was looked at
    filled = (found.panoptic is not None, found.semantic is not None, found.instances is not None)
    assert filled == tuple(kind in MODELS[name].produces for kind in ("panoptic", "semantic", "instances"))
    assert found.instances is None or len(found.instances) > 0
    assert found.panoptic is None or len(found.panoptic.segments) > 0


@pytest.mark.slow
@CORE_FIRST
@pytest.mark.parametrize("labels", [LabelSpace.from_names(["one"]), LABELS_VOID], ids=["one_thing", "no_stuff"])
def test_few_classes(name: str, labels: LabelSpace) -> None:
    model = small(name, labels)
    batch = collate([random_sample(64, 64, 0)])
    assert sum(model.train().loss(batch).values()).isfinite()
    with torch.inference_mode():
        (prediction,) = model.eval().decode(model(batch.images, batch.valid), [(64, 64)], **thresholds(model))
    assert_legal(prediction, (64, 64), labels)


@EVERY_DETECTOR
def test_no_detection_at_all(name: str) -> None:
    model = small(name).eval()
    asked = thresholds(model)
    if MODELS[name].architecture in ("panoptic_fcn", "panoptic_deeplab"):
        asked = asked | {"thing_threshold": 1.0}
    if MODELS[name].tasks:
        asked = asked | {"score_threshold": 1.1, "task": None}
    for module in model.modules():
        if isinstance(module, RCNN | FCISHead):
            module.score_threshold = 1.1
    batch = shapes_batch()
    with torch.inference_mode():
        predictions = model.decode(model(batch.images, batch.valid), batch.sizes, **asked)
    for prediction, size in zip(predictions, batch.sizes):
        assert_legal(prediction, size, LABELS)
        assert prediction.instances is None or len(prediction.instances) == 0
        assert name not in QUERY_MODELS or prediction.panoptic is None or not prediction.panoptic.segments


@EVERY_DETECTOR
def test_an_image_does_not_see_its_neighbours(name: str) -> None:
    """Alone on the same padded canvas or beside another image: the same outputs."""
    model = small(name).eval()
    batch = collate([random_sample(61, 90, 0), random_sample(96, 96, 1)])
    with torch.inference_mode():
        together = model.decode(model(batch.images, batch.valid), batch.sizes, **thresholds(model))
        alone = model.decode(model(batch.images[:1], batch.valid[:1]), batch.sizes[:1], **thresholds(model))
        outputs = [model(batch.images[:n], batch.valid[:n]) for n in (1, 2)]
    ours, theirs = alone[0].instances, together[0].instances
    assert len(ours) > 0
    assert_close(flat(ours)[:3], flat(theirs)[:3], 1e-4)
    if name in QUERY_MODELS:
        classes = [each.class_logits.select(-3, 0) for each in outputs]  # (…, B, Q, C + 1) → (…, Q, C + 1)
        with torch.inference_mode():
            masks = [model.mask_logits(each, 0) for each in outputs]
        assert_close(classes[:1] + masks[:1], classes[1:] + masks[1:], 1e-4)


@EVERY_SMALL
def test_the_content_of_padding_is_ignored(name: str) -> None:
    model = small(name).eval()
    batch = collate([random_sample(61, 90, 0), random_sample(96, 96, 1)])
    noise = torch.randint(0, 256, batch.images.shape, dtype=torch.uint8)
    dirty = torch.where(batch.valid[:, None], batch.images, noise)
    assert not torch.equal(dirty, batch.images)
    with torch.inference_mode():
        assert_close(flat(model(dirty, batch.valid)), flat(model(batch.images, batch.valid)), 0.0)


@EVERY_SMALL
def test_valid_left_out_means_no_padding(name: str) -> None:
    model, batch = small(name).eval(), shapes_batch()
    assert batch.valid.all()
    with torch.inference_mode():
        assert_close(flat(model(batch.images)), flat(model(batch.images, batch.valid)), 0.0)


@EVERY_SMALL
def test_evaluation_changes_no_state(name: str) -> None:
    model, batch = small(name).eval(), shapes_batch()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.inference_mode():
        model(batch.images, batch.valid)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@EVERY_SMALL
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    model, batch = small(name).eval(), shapes_batch()
    options: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in SMALL[name].items()}
    save_model(tmp_path / "model", model, name, options)
    loaded, found, _ = load_model(tmp_path / "model")
    assert found == name
    with torch.inference_mode():
        assert_close(flat(loaded(batch.images, batch.valid)), flat(model(batch.images, batch.valid)), 0.0)


@EVERY_SMALL
def test_every_option_has_a_default_and_unknown_ones_are_named(name: str) -> None:
    assert set(SMALL[name]) <= set(builder_options(name))
    with pytest.raises(PansightError, match=f"unknown option of model {name}: 'no_option'; known: "):
        build(name, LABELS, no_option=3)


@pytest.mark.slow
@CORE_FIRST
@pytest.mark.parametrize("size", [(32, 32), (4096, 64), (64, 4096)])
def test_long_images(name: str, size: tuple[int, int]) -> None:
    model = small(name).eval()
    batch = collate([random_sample(*size, 0)], model.input.resize.divisor)
    with torch.inference_mode():
        (prediction,) = model.decode(model(batch.images, batch.valid), [size], **thresholds(model))
    assert_legal(prediction, size, LABELS)


@EVERY_SMALL
def test_an_optimiser_has_each_parameter_once(name: str) -> None:
    model = small(name)
    for decay in ("weights", "everything"):
        groups = parameter_groups(model, TrainConfig(lr=1e-3, decay=decay), MODELS[name].rates)
        found = [id(p) for group in groups for p in group["params"]]
        assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@EVERY_QUERY_MODEL
def test_stuff_alone_is_enough_for_queries(name: str) -> None:
    labels = LabelSpace.from_names([], ["road", "sky"])
    model = small(name, labels)
    batch = collate([random_sample(64, 64, 0)])
    assert sum(model.train().loss(batch).values()).isfinite()
    with torch.inference_mode():
        (prediction,) = model.eval().decode(model(batch.images, batch.valid), [(64, 64)], **thresholds(model))
    assert_legal(prediction, (64, 64), labels)


@EVERY_QUERY_MODEL
def test_the_task_decides_what_a_prediction_holds(name: str) -> None:
    model, batch = small(name).eval(), shapes_batch(1)
    filled = {"panoptic": (1, 0, 0), "semantic": (0, 1, 0), "instance": (0, 0, 1), "all": (1, 1, 1), None: (1, 0, 0)}
    with torch.inference_mode():
        outputs = model(batch.images, batch.valid)
        for task, expected in filled.items():
            (found,) = model.decode(outputs, batch.sizes, **thresholds(model) | {"task": task})
            kinds = (found.panoptic, found.semantic, found.instances)
            assert tuple(int(kind is not None) for kind in kinds) == expected, task
        with pytest.raises(PansightError, match=r"unknown task 'boxes'; known: .*instance"):
            model.decode(outputs, batch.sizes, task="boxes")


@EVERY_QUERY_MODEL
def test_masks_of_some_queries_are_those_of_all(name: str) -> None:
    model, batch = small(name).eval(), shapes_batch(2)
    some = torch.tensor([7, 0, 3])
    with torch.inference_mode():
        outputs = model(batch.images, batch.valid)
        every = model.mask_logits(outputs, 1)
        assert every.shape[0] == SMALL[name]["queries"]
        torch.testing.assert_close(model.mask_logits(outputs, 1, some), every[some], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_query_models(name: str) -> None:
    """Built without memory; their parameters are counted in the tests of each system."""
    with torch.device("meta"):
        model = build(name, LABELS)
    assert model.labels == LABELS
    heads = [p for key, p in model.named_parameters() if "class_" in key and key.endswith(".weight")]
    assert [len(p) for p in heads] == [len(LABELS) + 1]
    assert (model.input.resize.short, model.input.resize.long) in ((800, 1333), (640, 640), (1280, 1280))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.long) for n in FULL_SIZE])
def test_builders_of_published_models(name: str) -> None:
    """Forward, decode and loss of the full networks, once, on a small image."""
    model = build(name, LABELS)
    assert (model.input.resize.short, model.input.resize.long) in ((800, 1333), (1024, 2048), (640, 640))
    batch = shapes_batch(1, 64)
    losses = model.train().loss(batch)
    assert sum(losses.values()).isfinite()
    has_masks = "panoptic" in MODELS[name].produces and MODELS[name].architecture != "panoptic_deeplab"
    assert ("mask" in losses) == has_masks
    assert ("semantic" in losses) == (MODELS[name].architecture not in ("faster_rcnn", "mask_rcnn"))
    with torch.inference_mode():
        (prediction,) = model.eval().decode(model(batch.images, batch.valid), [(65, 43)], **thresholds(model))
    assert_legal(prediction, (65, 43), LABELS)


@pytest.mark.parametrize("name", [name for name in SEMANTIC if MODELS[name].variant_of])
def test_published_semantic_models(name: str) -> None:
    """Built without memory; their parameters are counted in the tests of each system."""
    more = LabelSpace.from_names([], [f"class {k}" for k in range(21)])
    with torch.device("meta"):
        model = build(name, more)
    heads = [key for key, _ in model.named_parameters() if key.startswith(tuple(MODELS[name].class_rows))]
    last = dict(model.named_parameters())[heads[-1]]
    assert len(last) == len(more)

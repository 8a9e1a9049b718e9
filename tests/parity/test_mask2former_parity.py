"""Mask2Former beside transformers' Mask2FormerForUniversalSegmentation with the same random weights."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pansight.data.loader import collate
from pansight.ops.queries.targets import dense_masks, segment_targets
from pansight.types import Batch, LabelSpace, PanopticSegmentation, Sample, Segment
from pansight.weights.huggingface import load_folder
from pansight.weights.huggingface.decode import decode_like_transformers

pytestmark = pytest.mark.slow  # beside other code, on images of some size

SIZES = [(61, 90), (96, 70)]
CANVAS = (96, 96)
STUFF = {3, 4}
POINTS = 80
LAYERS = 4
SWIN = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 4], "window_size": 4}
RESNET = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}


def reference(kind: str = "swin", **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    backbone = (
        transformers.SwinConfig(**SWIN, **STAGES) if kind == "swin" else transformers.ResNetConfig(**RESNET, **STAGES)
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=2,
        encoder_feedforward_dim=24,
        decoder_layers=LAYERS + 1,
        dim_feedforward=48,
        num_attention_heads=4,
        num_queries=12,
        train_num_points=POINTS,
        id2label={i: f"class {i}" for i in range(5)},
        **options,
    )
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:  # away from where all queries are alike
        with torch.no_grad():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(
                ("running_mean", "bias_table", "sampling_offsets.weight", "attention_weights.weight")
            ) or (name.endswith("bias") and tensor.ndim == 1 and "sampling_offsets" not in name):
                tensor.normal_(0, 0.1)
            elif "normalization" in name and name.endswith("weight"):  # as it starts there, BatchNorm passes nothing
                tensor.uniform_(0.5, 1)
            elif tensor.ndim == 2 and ("mask_embedder" in name or "class_predictor" in name):
                tensor.normal_(0, 1.2 * tensor.shape[1] ** -0.5)
    return model.eval()


def loaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    ours, name, options = load_folder(folder)
    assert name == "mask2former"
    assert options["backbone"] in ("swin_c16_d1-2-1-1_h1-2-4-4_w4", "resnet18")
    assert options["layers"] == LAYERS
    assert options["loss_points"] == POINTS
    ours.labels = LabelSpace(c._replace(is_thing=c.id not in STUFF) for c in ours.labels)
    return ours


def batch() -> Batch:
    """Three segments and two, on noise of two sizes."""
    random = torch.Generator().manual_seed(1)
    samples: list[Sample] = []
    for index, (height, width) in enumerate(SIZES):
        ids = torch.zeros((height, width), dtype=torch.int32)
        ids[5:40, 10:60] = 1
        ids[50:60, :] = 2
        segments = [Segment(1, index), Segment(2, 3)]
        if index == 0:
            ids[3:33, 61:90] = 3
            segments.append(Segment(3, 2))
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=random)
        samples.append(Sample(image, PanopticSegmentation(ids, tuple(segments)), index, (height, width)))
    return collate(samples)


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_logits_and_masks_of_every_layer(kind: str, tmp_path: Path) -> None:
    """With padding, which both look at, and on a canvas that no stride divides."""
    theirs = reference(kind)
    ours = loaded(theirs, tmp_path)
    data = batch()
    assert tuple(data.images.shape[2:]) == CANVAS
    assert not data.valid.all()
    for images, valid in [(data.images, data.valid), (data.images[:1, :, :61, :90], None)]:
        with torch.inference_mode():
            expected = theirs(ours.input(images, valid), output_auxiliary_logits=True)
            levels, positions, shapes, features = ours.pixel_decoder(ours.backbone(ours.input(images, valid)))
            classes, embeddings = ours.predictor(levels, positions, shapes, features, all_layers=True)
            found = ours(images, valid)
        masks = torch.einsum("lbqd,bdhw->lbqhw", embeddings, features)
        assert len(classes) == len(expected.auxiliary_logits) + 1 == LAYERS + 1
        for layer, other in enumerate(expected.auxiliary_logits):
            torch.testing.assert_close(classes[layer], other["class_queries_logits"], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(masks[layer], other["masks_queries_logits"], rtol=1e-4, atol=1e-4)
        last = expected.masks_queries_logits
        assert expected.class_queries_logits.std() > 0.3  # else agreement means little
        assert last.std() > 0.3
        assert 0.1 < (last > 0).float().mean() < 0.9
        torch.testing.assert_close(found.class_logits, expected.class_queries_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.mask_logits(found, 0), last[0], rtol=1e-4, atol=1e-4)
        some = ours.mask_logits(found, 0, torch.tensor([7, 2]))
        torch.testing.assert_close(some, last[0, [7, 2]], rtol=1e-4, atol=1e-4)


def same_for_a_shape(*shape: int, device: Any = None) -> Tensor:
    """Uniform numbers that depend on the shape alone."""
    seed = sum(size * factor for size, factor in zip(shape, (1_000_003, 1009, 1)))
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_losses_and_gradients(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same points for matching and for the losses of all layers."""
    theirs = reference(kind, mask_weight=4.0, dice_weight=3.0, no_object_weight=0.2)
    ours = loaded(theirs, tmp_path)  # in eval mode: no stochastic depth on either side
    data = batch()
    targets = segment_targets(data, ours.labels)
    images = itertools.cycle(range(len(targets)))
    rand = torch.rand

    def their_draw(*shape: int, device: Any = None) -> Tensor:
        """transformers draws the matching points of one image at a time, anew for every layer."""
        with monkeypatch.context() as inner:
            inner.setattr(torch, "rand", rand)
            if shape == (1, POINTS, 2):
                return same_for_a_shape(len(targets), POINTS, 2)[next(images)][None]
            return same_for_a_shape(*shape)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand", their_draw)
        expected = theirs(
            ours.input(data.images, data.valid),
            mask_labels=[dense_masks(target, CANVAS) for target in targets],
            class_labels=[target.categories for target in targets],
        )
    found = ours.loss(data, draw=same_for_a_shape)
    assert sorted(found) == ["class", "dice", "mask"]
    torch.testing.assert_close(sum(found.values()), expected.loss[()], rtol=1e-5, atol=1e-4)

    sum(found.values()).backward()
    expected.loss.backward()
    pixels = "model.pixel_level_module.decoder."
    pairs = {
        "predictor.query_feat.weight": "model.transformer_module.queries_features.weight",
        "predictor.level_embed.weight": "model.transformer_module.level_embed.weight",
        "predictor.transformer_cross_attention_layers.1.multihead_attn.in_proj_weight": (
            "model.transformer_module.decoder.layers.1.cross_attn.in_proj_weight"
        ),
        "pixel_decoder.mask_features.weight": pixels + "mask_projection.weight",
        "pixel_decoder.transformer.level_embed": pixels + "level_embed",
        "pixel_decoder.transformer.encoder.layers.0.self_attn.sampling_offsets.weight": (
            pixels + "encoder.layers.0.self_attn.sampling_offsets.weight"
        ),
        "pixel_decoder.transformer.encoder.layers.1.self_attn.attention_weights.weight": (
            pixels + "encoder.layers.1.self_attn.attention_weights.weight"
        ),
        "pixel_decoder.transformer.encoder.layers.0.self_attn.value_proj.weight": (
            pixels + "encoder.layers.0.self_attn.value_proj.weight"
        ),
    }
    for mine, other in pairs.items():
        gradient = theirs.get_parameter(other).grad
        scale = float(gradient.abs().max())
        assert scale > 0, other
        torch.testing.assert_close(ours.get_parameter(mine).grad, gradient, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0])
def test_panoptic_map(threshold: float, tmp_path: Path) -> None:
    """Every pixel the same, in both images; with a threshold of 1 nothing is kept."""
    from transformers import Mask2FormerImageProcessor

    theirs = reference()
    ours = loaded(theirs, tmp_path)
    data, sizes = batch(), [(120, 90), (64, 130)]
    with torch.inference_mode():
        outputs = theirs(ours.input(data.images, data.valid))
        found = ours(data.images, data.valid)
        maps = decode_like_transformers("mask2former", ours, found, sizes, threshold, overlap=0.2)
    expected = Mask2FormerImageProcessor().post_process_panoptic_segmentation(
        outputs,
        threshold=threshold,
        overlap_mask_area_threshold=0.2,
        label_ids_to_fuse=STUFF,
        target_sizes=sizes,
    )
    segments = 0
    for panoptic, other in zip(maps, expected, strict=True):
        different = panoptic.ids != other["segmentation"].clamp(min=0).to(torch.int32)
        assert different.sum() <= 2  # ties, where torch rounds as its number of threads has it
        table = {row["id"]: row for row in other["segments_info"]}  # of two rows of one id the later
        assert {s.id: s.category for s in panoptic.segments} == {i: r["label_id"] for i, r in table.items()}
        for segment in panoptic.segments:
            assert segment.score == pytest.approx(table[segment.id]["score"], abs=1e-5)
        segments += len(table)
    assert segments >= (3 if threshold == 0.3 else 1 if threshold == 0.5 else 0)
    assert threshold < 1 or segments == 0


def test_batch_invariance(tmp_path: Path) -> None:
    """An image alone on the same canvas, or beside another: the same, there and here."""
    theirs = reference()
    ours = loaded(theirs, tmp_path)
    data = batch()
    with torch.inference_mode():
        together, alone = ours(data.images, data.valid), ours(data.images[:1], data.valid[:1])
        expected = theirs(ours.input(data.images[:1], data.valid[:1]))
    torch.testing.assert_close(together.class_logits[:1], alone.class_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.mask_logits(together, 0), ours.mask_logits(alone, 0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.mask_logits(together, 0), expected.masks_queries_logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_written_for_transformers(kind: str, tmp_path: Path) -> None:
    """Their files to ours and back: the same names and values; names that version 5 has in memory are read too."""
    from pansight.weights.huggingface import read_state
    from pansight.weights.huggingface.mask2former import export, renamed

    theirs = reference(kind)
    ours = loaded(theirs, tmp_path)
    state = read_state(tmp_path)
    backbone = "resnet18" if kind == "resnet" else "swin_c16_d1-2-1-1_h1-2-4-4_w4"
    config, tensors, processor = export(ours, "mask2former", {"backbone": backbone})
    assert sorted(tensors) == sorted(state)
    for key, tensor in tensors.items():
        if "swin.layernorm" not in key:
            assert torch.equal(tensor, state[key]), key
    assert config["num_queries"] == 12
    assert config["decoder_layers"] == LAYERS + 1
    assert config["backbone_config"]["model_type"] == kind
    assert processor["image_mean"] == pytest.approx([0.485, 0.456, 0.406], abs=1e-5)
    in_memory = renamed(theirs.state_dict(), "memory")
    for key, tensor in renamed(state, "disk").items():
        assert torch.equal(in_memory[key], tensor), key

"""MaskFormer beside transformers' MaskFormerForInstanceSegmentation with the same random weights."""

from __future__ import annotations

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
SWIN = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 4], "window_size": 4}
RESNET = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
KINDS = ["swin", "resnet"]


def reference(kind: str, layers: int = 3, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    backbone = (
        transformers.SwinConfig(**SWIN, **STAGES) if kind == "swin" else transformers.ResNetConfig(**RESNET, **STAGES)
    )
    decoder = transformers.DetrConfig(
        d_model=32,
        decoder_layers=layers,
        decoder_attention_heads=8,
        decoder_ffn_dim=48,
        num_queries=12,
        use_timm_backbone=False,
        backbone_config=transformers.ResNetConfig(),
    )
    config = transformers.MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        id2label={i: f"class {i}" for i in range(5)},
        **options,
    )
    torch.manual_seed(0)
    model = transformers.MaskFormerForInstanceSegmentation(config)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:  # away from where all queries are alike
        with torch.no_grad():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias_table")) or (name.endswith("bias") and tensor.ndim == 1):
                tensor.normal_(0, 0.1)
            elif "normalization" in name and name.endswith("weight"):  # as it starts there, BatchNorm passes nothing
                tensor.uniform_(0.5, 1)
            elif name.endswith(("queries_embedder.weight", "class_predictor.weight", "mask_embedder.2.0.weight")):
                tensor.normal_()
            elif name.endswith(("q_proj.weight", "k_proj.weight")):  # queries that look at different places
                tensor.normal_(0, 4 * tensor.shape[1] ** -0.5)
            elif tensor.ndim == 2 and ("transformer_module" in name or "predictor" in name or "embedder" in name):
                tensor.normal_(0, 1.2 * tensor.shape[1] ** -0.5)
    return model.eval()


def loaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    ours, name, options = load_folder(folder)
    assert name == "maskformer"
    assert options["backbone"] in ("swin_c16_d1-2-1-1_h1-2-4-4_w4", "resnet18")
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


def truth_for_transformers(data: Batch, labels: LabelSpace) -> dict[str, list[Tensor]]:
    targets = segment_targets(data, labels)
    masks = [dense_masks(target, CANVAS) for target in targets]
    return {"mask_labels": masks, "class_labels": [target.categories for target in targets]}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_masks(kind: str, tmp_path: Path) -> None:
    """Of all queries and of some; with padding, which both look at, and on a canvas that no stride divides."""
    theirs = reference(kind)
    ours = loaded(theirs, tmp_path)
    data = batch()
    assert tuple(data.images.shape[2:]) == CANVAS
    assert not data.valid.all()
    for images, valid in [(data.images, data.valid), (data.images[:1, :, :61, :90], None)]:
        with torch.inference_mode():
            expected = theirs(ours.input(images, valid))
            found = ours(images, valid)
            masks = torch.stack([ours.mask_logits(found, image) for image in range(len(images))])
            some = ours.mask_logits(found, 0, torch.tensor([7, 2]))
        assert expected.class_queries_logits.std() > 0.3  # else agreement means little
        assert expected.masks_queries_logits.std() > 0.3
        torch.testing.assert_close(found.class_logits, expected.class_queries_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(masks, expected.masks_queries_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(some, expected.masks_queries_logits[0, [7, 2]], rtol=1e-4, atol=1e-4)


LOSSES = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients(kind: str, tmp_path: Path) -> None:
    """With one decoder layer: transformers 5 normalises layers twice where it is told to give losses of all."""
    theirs = reference(kind, layers=1, mask_weight=15.0, dice_weight=2.0, no_object_weight=0.2)
    ours = loaded(theirs, tmp_path)  # in eval mode: no dropout on either side
    data = batch()
    expected = theirs(ours.input(data.images, data.valid), **truth_for_transformers(data, ours.labels))
    found = ours.loss(data)
    torch.testing.assert_close(sum(found.values()), expected.loss, rtol=1e-4, atol=1e-4)

    torch.stack(list(found.values())).sum().backward()
    expected.loss.backward()
    pairs = {
        "predictor.query_embed.weight": "model.transformer_module.queries_embedder.weight",
        "predictor.mask_embed.layers.0.weight": "mask_embedder.0.0.weight",
        "pixel_decoder.mask_features.weight": "model.pixel_level_module.decoder.mask_projection.weight",
        "pixel_decoder.adapter_2.weight": "model.pixel_level_module.decoder.fpn.layers.1.proj.0.weight",
    }
    for mine, other in pairs.items():
        gradient = theirs.get_parameter(other).grad
        scale = float(gradient.abs().max())
        assert scale > 0, other
        torch.testing.assert_close(ours.get_parameter(mine).grad, gradient, rtol=1e-3, atol=1e-4 * scale)


def test_losses_of_every_layer(tmp_path: Path) -> None:
    """transformers' criterion on the predictions of our layers."""
    theirs = reference("swin", mask_weight=15.0, dice_weight=2.0, no_object_weight=0.2)
    ours = loaded(theirs, tmp_path)
    data = batch()
    features, memory = ours.pixel_decoder(ours.backbone(ours.input(data.images, data.valid)))
    classes, embeddings = ours.predictor(memory, all_layers=True)
    masks = torch.einsum("lbqd,bdhw->lbqhw", embeddings, ours.pixel_decoder.mask_features(features))
    first = [{"masks_queries_logits": m, "class_queries_logits": c} for m, c in zip(masks[:-1], classes[:-1])]
    assert len(first) == 2
    terms = theirs.get_loss_dict(
        masks[-1], classes[-1], auxiliary_logits=first, **truth_for_transformers(data, ours.labels)
    )
    found = ours.loss(data)
    assert sorted(found) == sorted(LOSSES)
    for name, key in LOSSES.items():
        total = torch.stack([value for term, value in terms.items() if term.startswith(key)])
        assert len(total) == 3
        torch.testing.assert_close(found[name], total.sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "threshold", "least"), [("swin", 0.5, 4), ("resnet", 0.5, 2), ("swin", 0.8, 2), ("swin", 1.0, 0)]
)
def test_panoptic_map(kind: str, threshold: float, least: int, tmp_path: Path) -> None:
    """Every pixel the same, in both images; with a threshold of 1 nothing is kept."""
    from transformers import MaskFormerImageProcessor

    theirs = reference(kind)
    ours = loaded(theirs, tmp_path)
    data, sizes = batch(), [(120, 90), (64, 130)]
    with torch.inference_mode():
        outputs = theirs(ours.input(data.images, data.valid))
        found = ours(data.images, data.valid)
        maps = decode_like_transformers("maskformer", ours, found, sizes, threshold, overlap=0.2)
    expected = MaskFormerImageProcessor().post_process_panoptic_segmentation(
        outputs,
        threshold=threshold,
        overlap_mask_area_threshold=0.2,
        label_ids_to_fuse=STUFF,
        target_sizes=sizes,
    )
    segments = pixels = 0
    for panoptic, other in zip(maps, expected, strict=True):
        different = panoptic.ids != other["segmentation"].clamp(min=0).to(torch.int32)
        assert different.sum() <= 2  # ties, where torch rounds as its number of threads has it
        table = {row["id"]: row for row in other["segments_info"]}  # of two rows of one id the later
        assert {s.id: s.category for s in panoptic.segments} == {i: r["label_id"] for i, r in table.items()}
        for segment in panoptic.segments:
            assert segment.score == pytest.approx(table[segment.id]["score"], abs=1e-5)
        segments += len(table)
        pixels += int((panoptic.ids > 0).sum())
    assert segments >= least
    assert (pixels > 1000) == (segments > 0) == (threshold < 1)


@pytest.mark.parametrize("kind", KINDS)
def test_export_and_both_key_generations(kind: str, tmp_path: Path) -> None:
    import transformers
    from safetensors.torch import load_file

    from pansight.weights.huggingface.export import write_folder
    from pansight.weights.huggingface.maskformer import renamed

    theirs = reference(kind)
    ours = loaded(theirs, tmp_path / "theirs")
    on_disk = renamed(load_file(tmp_path / "theirs" / "model.safetensors"), "disk")
    in_memory = renamed(theirs.state_dict(), "memory")
    assert any(".mlp.fc1" in key and "decoder" in key for key in theirs.state_dict())
    assert on_disk.keys() == in_memory.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, in_memory[key]) for key, tensor in on_disk.items())

    (tmp_path / "ours").mkdir()
    _, name, options = load_folder(tmp_path / "theirs")
    assert write_folder(tmp_path / "ours", ours, name, options, "", "", None) == type(theirs).__name__
    kind_of_model: Any = transformers.MaskFormerForInstanceSegmentation
    again, report = kind_of_model.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {key: value for key, value in report.items() if value} == {}
    state = again.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    different = [key for key, tensor in theirs.state_dict().items() if not torch.equal(tensor, state[key])]
    assert all(key.startswith("model.pixel_level_module.encoder.model.layernorm.") for key in different)
    assert again.config.decoder_config.decoder_layers == 3

"""DETR against transformers' DetrForSegmentation and DetrForObjectDetection, small and with random weights.

transformers normalises the decoder's output between the layers where auxiliary_loss is on, which the official
repository does not: its losses of earlier layers are therefore asked of its loss function, not of its model.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pansight.data.loader import collate
from pansight.ops.fast import plain
from pansight.types import Batch, LabelSpace, PanopticSegmentation, Sample, Segment
from pansight.weights.huggingface import load_folder
from pansight.weights.huggingface.decode import decode_like_transformers
from pansight.weights.huggingface.detr import RULES
from pansight.weights.keys import rename

pytestmark = pytest.mark.slow  # beside other code, on images of some size

SIZES = [(97, 101), (64, 130)]
CANVAS = (97, 130)
STUFF = {3, 4}
LAYOUTS = {
    "timm": {"backbone": "resnet18"},
    "dilated": {"backbone": "resnet18", "dilation": True},
    "resnet": {"use_timm_backbone": False},
}


def reference(layout: str = "timm", detection: bool = False) -> Any:
    transformers = pytest.importorskip("transformers")
    options = dict(LAYOUTS[layout])
    if layout == "dilated":  # timm's basic blocks cannot be dilated
        options["backbone"] = "resnet26"
    if layout == "resnet":
        options["backbone_config"] = transformers.ResNetConfig(
            layer_type="basic",
            depths=[2, 2, 2, 2],
            hidden_sizes=[64, 128, 256, 512],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
    config = transformers.DetrConfig(
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        num_queries=12,
        num_labels=5,
        id2label={i: f"class {i}" for i in range(5)},
        **options,
    )
    torch.manual_seed(0)
    model = transformers.DetrForObjectDetection(config) if detection else transformers.DetrForSegmentation(config)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:  # away from where the halves are all alike
        with torch.no_grad():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean") or (name.endswith("bias") and "norm" not in name):
                tensor.normal_(0, 0.1)
            elif tensor.ndim == 2 and "backbone" not in name:
                tensor.normal_(0, 1.2 * tensor.shape[1] ** -0.5)
            if name.endswith("classifier.weight"):
                tensor.mul_(2)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                tensor.mul_(1.5)  # attention that chooses
            if name.endswith(("input_projection.weight", "query_position_embeddings.weight")):
                tensor.mul_(5)  # places and queries that differ
            if name == "mask_head.conv1.conv.weight":
                tensor[:, 64:] *= 300  # and their masks differ: attention is a small number
    return model.eval()


def loaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    ours, _, _ = load_folder(folder)
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
            ids[70:71, 80:81] = 3
            segments.append(Segment(3, 2))
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=random)
        samples.append(Sample(image, PanopticSegmentation(ids, tuple(segments)), index, (height, width)))
    return collate(samples, divisor=1)


def truth_for_transformers(batch: Batch) -> list[dict[str, Tensor]]:
    rows: list[dict[str, Tensor]] = []
    for truth in batch.truths:
        height, width = truth.size
        masks = torch.stack([truth.ids == s.id for s in truth.segments])
        boxes = []
        for mask in masks:
            y, x = mask.nonzero().T
            x1, y1, x2, y2 = (float(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1))
            boxes.append([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height])
        labels = torch.tensor([s.category for s in truth.segments])
        rows.append({"class_labels": labels, "boxes": torch.tensor(boxes), "masks": masks.float()})
    return rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_boxes_and_masks(layout: str, tmp_path: Path) -> None:
    theirs = reference(layout)
    ours = loaded(theirs, tmp_path)
    images, valid = batch().images, batch().valid
    assert images.shape[2:] == CANVAS
    assert not valid.all()
    with torch.inference_mode():
        expected = theirs(ours.input(images, valid), pixel_mask=valid.long())
        found = ours(images, valid)
        masks = torch.stack([ours.mask_logits(found, image) for image in range(2)])
        some = ours.mask_logits(found, 1, torch.tensor([7, 2]))
    assert expected.logits.std() > 0.3  # else agreement means little
    assert expected.pred_boxes.std() > 0.05
    assert expected.pred_masks.std() > 0.3
    assert expected.pred_masks.std(1).mean() > 0.002  # between queries, too; see test_mask_head for more
    assert expected.pred_masks.shape == (2, 12, 25, 33)
    torch.testing.assert_close(found.class_logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes_cxcywh, expected.pred_boxes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(masks, expected.pred_masks, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(some, expected.pred_masks[1, [7, 2]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(3, 4), (1, 5)])
@pytest.mark.parametrize("odd", [0, 1])
def test_mask_head(size: tuple[int, int], odd: int) -> None:
    """Attention and head alone, on drawn features: queries that differ a lot; sides of twice the size and one less."""
    from transformers.models.detr.modeling_detr import DetrMaskHeadSmallConv, DetrMHAttentionMap

    from pansight.nn.queries.mask_head import AttentionMap, MaskHead

    height, width = size
    theirs, attention = DetrMaskHeadSmallConv(72, [20, 24, 28], 64), DetrMHAttentionMap(64, 8)
    for parameter in [*theirs.parameters(), *attention.parameters()]:
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.3 if parameter.ndim < 4 else 0.2)
    fpn: list[Tensor] = []
    for channels in (20, 24, 28):
        height, width = 2 * height - odd, 2 * width - odd
        fpn.append(torch.randn(1, channels, height, width))
    queries, memory, projected = torch.randn(1, 6, 64), torch.randn(1, 64, *size), torch.randn(1, 64, *size)
    valid = torch.ones(size, dtype=torch.bool)
    valid[:, -1] = False
    expected_map = attention(queries, memory, torch.where(valid, 0.0, -1e30)[None, None, None])
    head, look = MaskHead(64, 8, (20, 24, 28)), AttentionMap(64, 8)
    their_heads = {f"mask_head.{k}": v for k, v in theirs.state_dict().items()}
    their_heads |= {f"bbox_attention.{k}": v for k, v in attention.state_dict().items()}
    state = rename(their_heads, RULES, "", "test")
    for prefix, module in {"mask_head.": head, "bbox_attention.": look}.items():
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    found_map = look(queries[0], memory[0].permute(1, 2, 0), valid)
    torch.testing.assert_close(found_map, expected_map[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found_map.sum((1, 2, 3)), torch.ones(6))
    assert (found_map[..., -1] == 0).all()
    sharp = 3 * torch.randn_like(expected_map)  # a real one is a small number
    expected = theirs(projected, sharp, fpn).view(6, height, width)
    assert expected.std(0).mean() > 0.05
    for active in (False, True):
        with plain(active):
            found = head(projected, head.adapted(fpn), sharp[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_detection(tmp_path: Path) -> None:
    theirs = reference(detection=True)
    ours = loaded(theirs, tmp_path)
    assert ours.mask_head is None
    images, valid = batch().images, batch().valid
    with torch.inference_mode():
        expected = theirs(ours.input(images, valid), pixel_mask=valid.long())
        found = ours(images, valid)
    torch.testing.assert_close(found.class_logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes_cxcywh, expected.pred_boxes, rtol=1e-4, atol=1e-4)


WEIGHTS = {"class": ("ce", 1), "box": ("bbox", 5), "giou": ("giou", 2), "mask": ("mask", 1), "dice": ("dice", 1)}


def test_losses(tmp_path: Path) -> None:
    theirs = reference()
    ours = loaded(theirs, tmp_path)
    ours.auxiliary = False
    data = batch()
    images = ours.input(data.images, data.valid)
    expected = theirs(images, pixel_mask=data.valid.long(), labels=truth_for_transformers(data))
    found = ours.loss(data)
    assert sorted(found) == sorted(WEIGHTS)
    for name, (key, weight) in WEIGHTS.items():
        torch.testing.assert_close(found[name], weight * expected.loss_dict[f"loss_{key}"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sum(found.values()), expected.loss, rtol=1e-4, atol=1e-4)


def test_losses_of_every_layer(tmp_path: Path) -> None:
    from transformers.loss.loss_for_object_detection import ForSegmentationLoss

    theirs = reference()
    ours = loaded(theirs, tmp_path)
    theirs.config.auxiliary_loss = True
    data = batch()
    classes, boxes, outputs = ours._predict(data.images, data.valid, all_layers=True)
    masks = torch.stack([ours.mask_logits(outputs, image) for image in range(2)])
    truth = truth_for_transformers(data)
    total, terms, _ = ForSegmentationLoss(
        classes[-1], truth, torch.device("cpu"), boxes[-1], masks, theirs.config, classes, boxes
    )
    found = ours.loss(data)
    assert len(classes) == 2
    for name in ("class", "box", "giou"):
        key, weight = WEIGHTS[name]
        expected = weight * (terms[f"loss_{key}"] + terms[f"loss_{key}_0"])
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sum(found.values()), total, rtol=1e-4, atol=1e-4)


def test_gradients_of_the_mask_head(tmp_path: Path) -> None:
    """The folded convolutions lead to the gradients of the plain ones."""
    theirs = reference()
    ours = loaded(theirs, tmp_path)
    ours.auxiliary = False
    data = batch()
    images = ours.input(data.images, data.valid)
    theirs(images, pixel_mask=data.valid.long(), labels=truth_for_transformers(data)).loss.backward()
    torch.stack([*ours.loss(data).values()]).sum().backward()
    pairs = {
        "mask_head.lay1.weight": "mask_head.conv1.conv.weight",
        "mask_head.lay3.weight": "mask_head.fpn_stages.0.refine.conv.weight",
        "mask_head.lay5.weight": "mask_head.fpn_stages.2.refine.conv.weight",
        "mask_head.adapter2.weight": "mask_head.fpn_stages.1.fpn_adapter.weight",
        "bbox_attention.k_linear.weight": "bbox_attention.k_proj.weight",
        "query_embed.weight": "detr.model.query_position_embeddings.weight",
    }
    for mine, other in pairs.items():
        expected = theirs.get_parameter(other).grad
        assert expected.abs().max() > 0, other
        scale = float(expected.abs().max())
        torch.testing.assert_close(ours.get_parameter(mine).grad, expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(("threshold", "least"), [(0.5, 3), (0.7, 3), (1.0, 0)])
def test_panoptic_map(threshold: float, least: int, tmp_path: Path) -> None:
    """The same pixels for the same masks, and from end to end, but for ties that rounding decides."""
    from transformers import DetrImageProcessor

    theirs = reference()
    ours = loaded(theirs, tmp_path)
    data, sizes = batch(), [(120, 90), (64, 130)]
    with torch.inference_mode():
        expected = theirs(ours.input(data.images, data.valid), pixel_mask=data.valid.long())
        # drawn classes: those of an untrained model are all alike
        expected.logits = 3 * torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(3))
        found = ours(data.images, data.valid)._replace(class_logits=expected.logits)
        maps = decode_like_transformers("detr", ours, found, sizes, threshold, overlap=0.2)
        masks = torch.stack([ours.mask_logits(found, image) for image in range(2)])
    same = SimpleNamespace(logits=found.class_logits, pred_masks=masks)
    settings = {"threshold": threshold, "overlap_mask_area_threshold": 0.2, "target_sizes": sizes}
    rule = DetrImageProcessor().post_process_panoptic_segmentation
    segments = 0
    for panoptic, exact, close in zip(
        maps,
        rule(same, label_ids_to_fuse=STUFF, **settings),
        rule(expected, label_ids_to_fuse=STUFF, **settings),
        strict=True,
    ):
        ids = panoptic.ids
        # all −1 where nothing is kept; at a tie torch's own rounding depends on its number of threads
        assert (ids != exact["segmentation"].clamp(min=0).int()).sum() <= 2
        assert (ids != close["segmentation"].clamp(min=0).int()).float().mean() < 0.002
        table = {row["id"]: row for row in exact["segments_info"]}  # of two rows of one id the later
        assert {s.id: s.category for s in panoptic.segments} == {i: r["label_id"] for i, r in table.items()}
        for segment in panoptic.segments:
            assert segment.score == pytest.approx(table[segment.id]["score"], abs=1e-5)
        segments += len(table)
    assert segments >= least
    assert threshold < 1 or segments == 0


def test_both_key_generations(tmp_path: Path) -> None:
    """The names that transformers 5 has in memory are read as those on disk."""
    from safetensors.torch import load_file

    from pansight.weights.huggingface.detr import renamed

    theirs = reference("resnet")
    theirs.save_pretrained(tmp_path)
    on_disk = renamed(load_file(tmp_path / "model.safetensors"), "disk")
    in_memory = renamed(theirs.state_dict(), "memory")
    assert any("fpn_stages" in key for key in theirs.state_dict())
    assert not any("fpn_stages" in key for key in load_file(tmp_path / "model.safetensors"))
    assert on_disk.keys() == in_memory.keys()
    assert all(torch.equal(tensor, in_memory[key]) for key, tensor in on_disk.items())


@pytest.mark.parametrize("detection", [False, True])
def test_export_is_what_transformers_loads(detection: bool, tmp_path: Path) -> None:
    import transformers

    from pansight.weights.huggingface.export import write_folder

    theirs = reference("timm", detection)
    ours = loaded(theirs, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    _, name, options = load_folder(tmp_path / "theirs")
    kind = write_folder(tmp_path / "ours", ours, name, options, "test", "", None)
    assert kind == ("DetrForObjectDetection" if detection else "DetrForSegmentation")
    again, report = getattr(transformers, kind).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    state = again.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in theirs.state_dict().items())

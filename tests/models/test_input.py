"""From a JPEG file to the network's input, beside what each official code does to it; torchvision's to its logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract import LABELS, SMALL
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import normalize, to_tensor
from torchvision.transforms.functional import resize as resize_pil
from twins import small_twins

from pansight.data.dataset import image_tensor
from pansight.data.images import read_image
from pansight.engine.infer import views_of
from pansight.models import MODELS, build
from pansight.ops.resize import TORCHVISION, ResizeRule

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Official = Callable[[Image.Image], Tensor]
"""RGB photo → float32 (3, H, W), normalised and padded."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two landscapes, one to enlarge and one to shrink: smooth shapes under fine texture."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, (height, width) in {"enlarged": (90, 123), "shrunk": (1000, 1410)}.items():
        y, x = np.mgrid[:height, :width]
        smooth = [128 + 80 * np.sin(x / 9) + 40 * np.cos(y / 7), 60 + x % 160, 200 - y % 190]
        pixels = np.stack(smooth, -1) + rng.normal(0, 25, (height, width, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{name}.jpg", quality=92)
    return {name: folder / f"{name}.jpg" for name in ("enlarged", "shrunk")}


def our_batch(model: Any, path: Path) -> tuple[Tensor, Tensor]:
    (view,) = views_of([image_tensor(read_image(path))], model.input.resize)
    return view.images, view.valid


def padded(pixels: Tensor, divisor: int) -> Tensor:
    return F.pad(pixels, (0, -pixels.shape[2] % divisor, 0, -pixels.shape[1] % divisor))


def detectron2_bgr(photo: Image.Image) -> Tensor:
    """DefaultPredictor with the MSRA models: BGR, ResizeShortestEdge(800, 1333), the mean alone."""
    height, width = ResizeRule(800, 1333, rounding="detectron2").target(photo.height, photo.width)
    levels = np.asarray(photo)[:, :, ::-1].copy()
    levels = np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(levels.astype(np.float32).transpose(2, 0, 1).copy())
    return padded(pixels - torch.tensor([103.53, 116.28, 123.675])[:, None, None], 32)


def mask2former(photo: Image.Image) -> Tensor:
    """The same resizing, RGB."""
    height, width = ResizeRule(800, 1333, rounding="detectron2").target(photo.height, photo.width)
    levels = np.array(photo.resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(levels).permute(2, 0, 1).float()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return padded((pixels - mean[:, None, None]) / std[:, None, None], 32)


def detr(photo: Image.Image) -> Tensor:
    """RandomResize([800], max_size=1333), ToTensor, Normalize, all on the PIL image."""
    size = ResizeRule(800, 1333, rounding="detr").target(photo.height, photo.width)
    return normalize(to_tensor(resize_pil(photo, list(size))), MEAN, STD)


def eomt(photo: Image.Image) -> Tensor:
    """Fitted into a square of 640, padded with black, normalised then."""
    height, width = ResizeRule(640, 640, rounding="eomt").target(photo.height, photo.width)
    levels = np.array(photo.resize((width, height), Image.Resampling.BILINEAR))
    black = F.pad(torch.from_numpy(levels).permute(2, 0, 1), (0, 640 - width, 0, 640 - height))
    return normalize(black.float() / 255, MEAN, STD)


VIT = {"vit_options": {"embed_dim": 24, "depth": 2, "num_heads": 2}, "queries": 3, "blocks": 1}
OFFICIAL: dict[str, tuple[str, dict[str, Any], Official]] = {
    "panoptic_fpn_r50_d2": ("panoptic_fpn_r50_d2", {}, detectron2_bgr),
    "mask2former": ("mask2former", SMALL["mask2former"] | {"short": 800, "long": 1333}, mask2former),
    "maskformer": ("maskformer", SMALL["maskformer"] | {"short": 800, "long": 1333}, mask2former),
    "detr": ("detr", SMALL["detr"] | {"short": 800, "long": 1333}, detr),
    "eomt": ("eomt", {"size": 640, **VIT}, eomt),
}


@pytest.mark.parametrize("change", ["enlarged", "shrunk"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_the_tensor_of_the_official_code(name: str, change: str, photos: dict[str, Path]) -> None:
    builder, options, official = OFFICIAL[name]
    model = build(builder, LABELS, **options)
    with Image.open(photos[change]) as photo:
        expected = official(photo.convert("RGB"))
    images, valid = our_batch(model, photos[change])
    found = model.input(images, valid)[0]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("limits", [(64, 99), (200, 333)], ids=["shrunk", "enlarged"])
def test_torchvisions_detectors(limits: tuple[int, int], photos: dict[str, Path]) -> None:
    """Normalised, then resized as floats; tensors, maps of the pyramid, scores and boxes."""
    theirs, ours = small_twins(masks=False)
    theirs.transform.min_size, theirs.transform.max_size = (limits[0],), limits[1]
    ours.input.resize = TORCHVISION._replace(short=limits[0], long=limits[1])
    with Image.open(photos["enlarged"]) as photo:
        plain = to_tensor(photo.convert("RGB"))
    images, valid = our_batch(ours, photos["enlarged"])
    assert images.dtype == torch.float32
    with torch.inference_mode():
        expected = theirs.transform([plain])[0].tensors
        torch.testing.assert_close(ours.input(images, valid), expected, rtol=1e-5, atol=2e-5)
        maps = theirs.backbone(expected).values()
        for a, b in zip(ours.fpn(ours.backbone(ours.input(images, valid))), maps, strict=False):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        (boxes,) = theirs([plain])
        (found,) = ours.decode(ours(images, valid), [(plain.shape[1], plain.shape[2])])
    assert len(boxes["scores"]) > 5
    torch.testing.assert_close(found.instances.scores, boxes["scores"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.instances.boxes_xyxy, boxes["boxes"], rtol=1e-4, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.produces != ("semantic",)])
def test_every_builder_has_the_rule_of_its_official_code(name: str) -> None:
    with torch.device("meta"):
        given = build(name, LABELS).input
    if name.startswith("eomt"):
        side = 1280 if "1280" in name else 640
        expected = ResizeRule(side, side, side, "eomt")
    elif "_tv" in name:
        expected = TORCHVISION
    elif name == "fcis":
        expected = ResizeRule(600, 1000, 32, "detectron2")
    elif name.startswith("upsnet_"):
        short, long = (1024, 2048) if name.endswith("cityscapes") else (800, 1333)
        expected = ResizeRule(short, long, rounding="eomt", filter="plain")
    elif name == "panoptic_fcn_r50_cityscapes":
        expected = ResizeRule(1024, 2048)
    elif name.startswith("panoptic_deeplab"):
        general = name == "panoptic_deeplab"
        expected = ResizeRule(512, 2048, 1) if general else ResizeRule(1024, 2048, 1)
        expected = ResizeRule(640, 640, 640) if name.endswith("_coco") else expected
    elif name == "efficientps_cityscapes":
        expected = ResizeRule(1024, 2048, filter="plain")
    elif name.startswith("detr"):
        expected = ResizeRule(800, 1333, 1, "detr")
    else:  # the authors of MaskFormer pad photos of COCO to no multiple
        expected = ResizeRule(800, 1333, 1 if name.startswith("maskformer_") else 32, "detectron2")
    assert given.resize == expected
    assert given.black_padding == name.startswith("eomt")
    assert given.bgr == (name.endswith("_d2") or name.startswith(("upsnet_", "panoptic_fcn_")))

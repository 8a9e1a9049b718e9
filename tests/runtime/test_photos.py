"""Photos become the input of a network as the engine makes them: every filter, every rounding, every kind of file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pansight.data.dataset import image_tensor
from pansight.data.images import read_image
from pansight.data.loader import pad_images
from pansight.data.transforms import resize_image
from pansight.models import MODELS, builder_options
from pansight.ops import resize
from pansight.runtime import resizing
from pansight.runtime.errors import RuntimeFault
from pansight.runtime.photos import checked_photo, input_of, read_photo

PHOTOS = ((61, 83), (83, 61), (40, 200), (200, 33), (64, 64))


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("rounding", resize.ROUNDINGS)
def test_sizes(rounding: str) -> None:
    for short, long, multiple in ((50, 90, 1), (640, 1333, 32), (0, 0, 1)):
        ours = resizing.ResizeRule(short, long, rounding=rounding, multiple=multiple)
        theirs = resize.ResizeRule(short, long, rounding=rounding, multiple=multiple)
        for height in range(1, 120, 7):
            for width in range(1, 200, 11):
                assert ours.target(height, width) == theirs.target(height, width)


RULES = [
    {"short": 47, "long": 90, "filter": name, "divisor": divisor, "rounding": rounding}
    for name, divisor, rounding in (
        ("pillow", 32, "detectron2"),
        ("antialias", 1, "eomt"),
        ("plain", 32, "torchvision"),
    )
]
RULES += [{**rule, "short": 130, "long": 500} for rule in RULES]
RULES += [{**rule, "short": 0, "long": 0} for rule in RULES[:3]]
RULES += [{"short": 0, "long": 0, "height": 48, "width": 96, "filter": f} for f in ("pillow", "antialias", "plain")]
RULES += [{**RULES[-1], "stretched": True}, {"short": 48, "long": 96, "multiple": 16, "filter": "pillow"}]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_inputs(rule: dict[str, Any]) -> None:
    theirs, ours = resize.ResizeRule(**rule), resizing.ResizeRule(**rule)
    for size in PHOTOS:
        photo = noise(*size)
        resized = resize_image(image_tensor(photo), *theirs.target(*size), theirs.filter)
        images, valid = pad_images([resized], theirs.divisor)
        found = input_of(photo, ours)
        assert found.images.dtype == images.numpy().dtype
        np.testing.assert_array_equal(found.valid, valid.numpy())
        if rule["filter"] == "plain":
            np.testing.assert_allclose(found.images, images.numpy(), atol=1e-2)  # of 255: rounding of float32
        else:
            np.testing.assert_array_equal(found.images, images.numpy())


def test_every_rule_of_a_model_is_known() -> None:
    assert set(resizing.FILTERS) == set(resize.FILTERS)
    assert set(resizing.ROUNDINGS) == set(resize.ROUNDINGS)
    assert set(resize.ResizeRule._fields) < set(resizing.ResizeRule._fields)
    assert {builder_options(name).get("filter", "pillow") for name in MODELS} <= set(resizing.FILTERS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_files_are_read_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(40, 24)).save(path, exif=exif)
    np.testing.assert_array_equal(read_photo(path), read_image(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_of_a_tiff_are_left_as_they_are_stored(tmp_path: Path, orientation: int) -> None:
    path, exif = tmp_path / "a.tif", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(40, 24)).save(path, exif=exif)
    np.testing.assert_array_equal(read_photo(path), noise(40, 24))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_kinds_of_pixels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(noise(20, 30)[..., 0].astype(np.uint16) * 257 // 2).save(path)
    else:
        Image.fromarray(noise(20, 30)).convert(mode).save(path)
    np.testing.assert_array_equal(read_photo(path), read_image(path))


def test_what_is_no_photo_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no photo")
    Image.fromarray(noise(40, 40)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    for name, found in (("none.jpg", "no such file"), ("text.jpg", "another kind"), ("cut.jpg", "cannot be read")):
        with pytest.raises(RuntimeFault) as caught:
            read_photo(tmp_path / name)
        assert caught.value.where.endswith(name)
        assert found in caught.value.found
        assert "\n" not in f"{caught.value}"
    for array in (noise(4, 5).astype(np.float32), noise(4, 5)[..., 0], noise(4, 5)[:0]):
        with pytest.raises(RuntimeFault, match=r"expected uint8 \(H, W, 3\)"):
            checked_photo(array)
    with pytest.raises(RuntimeFault, match="fits into 32×32"):
        input_of(noise(40, 40), resizing.ResizeRule(0, 0, size=(32, 32)))

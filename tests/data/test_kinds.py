"""Files that are no photos are named for what they are, in one line and without a word of a library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pansight.data.images import read_image
from pansight.errors import PansightError

HEADS = {
    "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "an HEIC photo: convert it to JPEG"),
    "phone.jpg": (b"\0\0\0\x18ftypmif1\0\0\0\0", "an HEIC photo"),
    "clip.jpg": (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
    "scan.png": (b"%PDF-1.7\n", "a PDF"),
    "page.jpg": (b"<!DOCTYPE html><html>", "a web page"),
    "drawing.png": (b'<?xml version="1.0"?>\n<svg xmlns="x">', "an SVG drawing"),
    "photos.jpg": (b"PK\x03\x04" + bytes(30), "a ZIP archive"),
    "camera.tif": (b"II*\0\x10\0\0\0CR\x02\0", "a raw photo"),
    "._a.jpg": (b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ", "what macOS keeps beside a file"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    "text.png": (b"no picture", "10 bytes of another kind"),
}


@pytest.mark.parametrize("name", HEADS)
def test_other_kinds_are_named(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, expected = HEADS[name]
    (tmp_path / name).write_bytes(data + bytes(64) if name != "text.png" else data)
    with pytest.raises(PansightError, match="expected an image, found ") as caught:
        read_image(tmp_path / name)
    assert expected in str(caught.value)
    assert "".join(capfd.readouterr()) == ""


def frames(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 16, 20, 3), np.uint8)
    return [Image.fromarray(each) for each in pixels]


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_animations_are_named(suffix: str, tmp_path: Path) -> None:
    first, *rest = frames(3)
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=rest)
    with pytest.raises(PansightError) as caught:
        read_image(tmp_path / f"a.{suffix}")
    assert f"expected one still image, found an animation ({suffix.upper()}) of 3 frames" in str(caught.value)
    first.save(tmp_path / f"still.{suffix}")
    assert read_image(tmp_path / f"still.{suffix}").shape == (16, 20, 3)


def test_pages_are_counted_but_for_smaller_copies(tmp_path: Path) -> None:
    first, second = frames(2)
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[second])
    with pytest.raises(PansightError, match="found a TIFF of 2 pages"):
        read_image(tmp_path / "pages.tif")
    small = second.resize((10, 8))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(tmp_path / "pyramid.tif", save_all=True, append_images=[small])
    assert np.array_equal(read_image(tmp_path / "pyramid.tif"), np.asarray(first))

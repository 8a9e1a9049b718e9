"""Augmentations that change the photo alone: brightness, contrast, saturation, hue, and the quality of the image file.

They take and give uint8 photos; a float32 photo (of the filter "plain" of ops/resize.py) is rounded to whole levels
first. The truth is passed on untouched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pansight.data.dataset import image_array, image_tensor
from pansight.errors import PansightError
from pansight.types import Sample

Photo = NDArray[Any]  # uint8 (H, W, 3) RGB; OpenCV's own types say no more


class PhotometricDistortion:
    """Brightness, contrast, saturation and hue, each with probability `p`, as in SSD (Liu et al. 2016, 3.6).

    brightness: ± in 0..255; contrast and saturation: the least and the largest factor; hue: ± degrees. All of it is
    look-up tables on uint8 and, for saturation and hue, a trip to HSV. Contrast comes before saturation and hue, or
    after, by a coin.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18,
        p: float = 0.5,
    ):
        self.brightness, self.contrast, self.saturation, self.hue, self.p = brightness, contrast, saturation, hue, p

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        use = rng.random(4) < self.p
        drawn = rng.uniform(-1, 1, 4)
        shift, turn = drawn[0] * use[0] * self.brightness, drawn[3] * use[3] * self.hue
        factor, saturation = _factor(self.contrast, drawn[1], use[1]), _factor(self.saturation, drawn[2], use[2])
        contrast_last = rng.random() < 0.5
        levels = np.arange(256, dtype=np.float64)
        brighter = levels + shift
        first = brighter if contrast_last else np.clip(brighter, 0, 255) * factor
        image = _look_up(_whole_levels(sample), first)
        if use[2] or use[3]:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # hue in 256ths of a turn
            tables = np.stack([levels, levels * saturation, levels], axis=1)
            tables[:, 0] = (np.rint(levels + turn * 256 / 360)) % 256
            image = cv2.cvtColor(_look_up(hsv, tables), cv2.COLOR_HSV2RGB_FULL)
        if contrast_last and use[1]:
            image = _look_up(image, levels * factor)
        return replace(sample, image=image_tensor(image))


class ImageQuality:
    """The photo as a worse camera or a smaller file would give it: Gaussian blur, then noise, then JPEG.

    Each happens with a probability of its own: `blur`, `noise`, `jpeg`. blur_sigma: of the Gaussian, in pixels.
    noise_sigma: standard deviation of the noise, in levels of 0 … 255, drawn for each pixel and channel. jpeg_quality:
    1 … 100 as libjpeg has it. Each range is (least, largest), drawn uniformly.
    Raises PansightError for a range that is not ordered or lies outside of these bounds.
    """

    def __init__(
        self,
        blur: float = 0.0,
        noise: float = 0.0,
        jpeg: float = 0.0,
        blur_sigma: tuple[float, float] = (0.3, 2.0),
        noise_sigma: tuple[float, float] = (1.0, 12.0),
        jpeg_quality: tuple[int, int] = (40, 95),
    ):
        bounds = ("blur_sigma", blur_sigma, 0, 100), ("noise_sigma", noise_sigma, 0, 255)
        for name, (low, high), least, most in (*bounds, ("jpeg_quality", jpeg_quality, 1, 100)):
            if not least <= low <= high <= most:
                expected = f"least and largest {name} within {least} … {most}"
                raise PansightError(where="ImageQuality", expected=expected, found=f"{low}, {high}")
        self.blur, self.noise, self.jpeg = blur, noise, jpeg
        self.blur_sigma, self.noise_sigma, self.jpeg_quality = blur_sigma, noise_sigma, jpeg_quality

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        use = rng.random(3) < (self.blur, self.noise, self.jpeg)
        blur, noise = rng.uniform(*self.blur_sigma), rng.uniform(*self.noise_sigma)
        quality = int(rng.integers(self.jpeg_quality[0], self.jpeg_quality[1] + 1))
        if not use.any():
            return sample
        image = _whole_levels(sample)
        if use[0] and blur > 0:
            image = cv2.GaussianBlur(image, (0, 0), blur, borderType=cv2.BORDER_REFLECT)
        if use[1] and noise > 0:
            levels = image + noise * rng.standard_normal(image.shape, np.float32)
            image = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        if use[2]:
            image = _recompressed(image, quality)
        return replace(sample, image=image_tensor(image))


def _recompressed(image: Photo, quality: int) -> Photo:
    """uint8 (H, W, 3) RGB, written as a JPEG of this quality and read again."""
    _, file = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: Any = cv2.imdecode(file, cv2.IMREAD_COLOR)
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _factor(limits: tuple[float, float], drawn: float, use: bool) -> float:
    """The factor at `drawn`, -1 … 1, between the limits; 1 where it is not used."""
    low, high = limits
    return low + (high - low) * (drawn + 1) / 2 if use else 1.0


def _whole_levels(sample: Sample) -> Photo:
    image = image_array(sample.image)
    return image if image.dtype == np.uint8 else np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _look_up(image: Photo, table: NDArray[np.float64]) -> Photo:
    """Replace each level of uint8 (H, W, 3) by its entry in table (256,) or, per channel, (256, 3), rounded."""
    rounded = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return cv2.LUT(image, rounded.reshape(256, 1, -1) if rounded.ndim == 2 else rounded)

"""Augmentations of training samples: geometry, colour and image quality, objects pasted from other images."""

from pansight.data.transforms.colour import ImageQuality, PhotometricDistortion
from pansight.data.transforms.copy_paste import CopyPaste, paste_objects
from pansight.data.transforms.geometry import (
    Compose,
    ElasticDeformation,
    FixedSizeCrop,
    HorizontalFlip,
    RandomCrop,
    Resize,
    ResizeShortestEdge,
    Rot90,
    ScaleJitter,
    Transform,
    VerticalFlip,
    apply_warp,
    crop_sample,
    resize_ids,
    resize_image,
    resize_sample,
)
from pansight.data.transforms.rotation import RotateAndZoom

__all__ = [
    "Compose",
    "CopyPaste",
    "ElasticDeformation",
    "FixedSizeCrop",
    "HorizontalFlip",
    "ImageQuality",
    "PhotometricDistortion",
    "RandomCrop",
    "Resize",
    "ResizeShortestEdge",
    "Rot90",
    "RotateAndZoom",
    "ScaleJitter",
    "Transform",
    "VerticalFlip",
    "apply_warp",
    "crop_sample",
    "paste_objects",
    "resize_ids",
    "resize_image",
    "resize_sample",
]

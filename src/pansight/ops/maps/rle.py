"""COCO's compressed run-length codes of masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from hotcoco import mask as rle

if TYPE_CHECKING:
    from torch import Tensor

Mask = np.ndarray[tuple[int, int], np.dtype[np.bool_]]


def mask_codes(masks: Tensor) -> tuple[str, ...]:
    """bool (N, H, W) on any device → the `counts` of each mask, as pycocotools writes and reads them."""
    rows = masks.detach().cpu().bool().numpy()  # (N, H, W)
    return tuple(code_text(rle.encode(cast(Mask, mask))["counts"]) for mask in rows)


def code_text(counts: object) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else str(counts)

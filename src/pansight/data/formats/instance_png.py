"""Folders of images and of PNGs whose pixel values number the objects of one class; 0 = background.

Known layouts: ``images/`` + ``instances/`` (Data Science Bowl 2018 as 16-bit PNGs) and ``PNGImages/`` + ``PedMasks/``
with ``*_mask.png`` (Penn-Fudan; palette PNGs, whose indices are the numbers).
"""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

import numpy as np

from pansight.data.dataset import ids_tensor, image_tensor, means_split, part_folders, part_names
from pansight.data.images import IMAGE_SUFFIXES, check_stored, read_image, read_index_png
from pansight.data.paths import named_folder
from pansight.errors import PansightError, choice_error
from pansight.ops.idmap import present_ids
from pansight.types import LabelSpace, PanopticSegmentation, Sample, Segment

LAYOUTS = (("images", "instances", "object"), ("PNGImages", "PedMasks", "pedestrian"))
"""(image folder, mask folder, class name unless one is given)."""


class InstancePng:
    """Images with a PNG each, of the same stem or of that stem + ``_mask``.

    thing: name of the class. background: "stuff" makes the zeros one segment of a class `background`, "void" leaves
    them void. notes: a line on images without a PNG, which are left out. damaged: PNGs without an image.
    Raises PansightError where there is no pair at all.
    """

    def __init__(self, images: str | Path, masks: str | Path, thing: str = "object", background: str = "stuff"):
        if background not in ("stuff", "void"):
            raise choice_error("background", background, ("stuff", "void"))
        self.images, self.masks, self.background = Path(images), Path(masks), background
        self.labels = LabelSpace.from_names([thing], ["background"] if background == "stuff" else [])
        for folder in (self.images, self.masks):
            if not folder.is_dir():
                raise PansightError(where=folder, expected="a folder of images", found="none")
        files = {normalize("NFC", f.stem): f for f in _visible(self.images) if f.suffix.lower() in IMAGE_SUFFIXES}
        masks_by_stem = {
            normalize("NFC", f.stem).removesuffix("_mask"): f
            for f in _visible(self.masks)
            if f.suffix.lower() == ".png"
        }
        if not files:
            raise PansightError(where=self.images, expected=f"images ({' '.join(IMAGE_SUFFIXES)})", found="none")
        paired = sorted(files.keys() & masks_by_stem.keys())
        alone = sorted(files.keys() - masks_by_stem.keys())
        if alone and not paired:
            expected = f"{self.masks.name}/{alone[0]}[_mask].png"
            raise PansightError(where=files[alone[0]], expected=expected, found="no such file", code="missing_file")
        self.notes = (f"{len(alone)} images without a PNG are left out, such as {alone[0]!r:.80}",) if alone else ()
        self.damaged = [
            PansightError(where=masks_by_stem[stem], expected=f"an image {self.images.name}/{stem}.*", found="none")
            for stem in sorted(masks_by_stem.keys() - files.keys())
        ]
        self._pairs = [(files[stem], masks_by_stem[stem]) for stem in paired]

    def __len__(self) -> int:
        return len(self._pairs)

    def image_id(self, index: int) -> str:
        """The name of the file without its suffix."""
        return self._pairs[index][0].stem

    def file_name(self, index: int) -> str:
        return self._pairs[index][0].name

    def problem(self, index: int) -> PansightError | None:
        """Why an image cannot be used, as far as this is told without decoding it; None where nothing is wrong."""
        image, mask = self._pairs[index]
        try:
            png = check_stored(mask)
            check_stored(image, (png.height, png.width))
        except PansightError as error:
            return error.with_traceback(None)  # which would keep what was read
        return None

    def __getitem__(self, index: int) -> Sample:
        image_file, mask_file = self._pairs[index]
        ids = read_index_png(mask_file)
        size = ids.shape[0], ids.shape[1]
        image = read_image(image_file, mask_size=size)
        numbers = [int(n) for n in present_ids(ids) if n != 0]
        segments = [Segment(n, 0) for n in numbers]
        if self.background == "stuff":
            empty = ids == 0
            if empty.any():
                number = max(numbers, default=0) + 1
                ids = np.where(empty, np.int32(number), ids)
                segments.append(Segment(number, 1))
        truth = PanopticSegmentation(ids_tensor(ids), tuple(segments))
        return Sample(image_tensor(image), truth, self.image_id(index), size)


def _visible(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))


def find_layout(root: Path, split: str | None) -> tuple[Path, Path, str] | None:
    """(images, masks, class name) of the first known layout in root/SPLIT, or in images/SPLIT and masks/SPLIT.

    Without a split, in root itself, or of its training part. A layout whose folder has images goes before one without.
    """
    wanted = split or "train"
    alike = [n for n in part_folders(root, *(root / images for images, _, _ in LAYOUTS)) if means_split(n, wanted)]
    names = dict.fromkeys((*part_names(wanted), *alike))
    pairs = [(root / images, root / masks, thing) for images, masks, thing in LAYOUTS if split is None]
    for name in names:
        pairs += [(root / name / images, root / name / masks, thing) for images, masks, thing in LAYOUTS]
        pairs += [(root / images / name, root / masks / name, thing) for images, masks, thing in LAYOUTS]
    found = [pair for pair in pairs if pair[0].is_dir() and pair[1].is_dir()]
    filled = (pair for pair in found if any(f.suffix.lower() in IMAGE_SUFFIXES for f in _visible(pair[0])))
    return next(filled, found[0] if found else None)


def open_instance_png(
    source: str | Path,
    split: str | None = None,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    thing: str | None = None,
    background: str = "stuff",
) -> InstancePng:
    """A data folder; `images` and `masks` name its two sub-folders where they are called otherwise.

    Raises PansightError listing what was looked for.
    """
    root = Path(source)
    if (images is None) != (masks is None):
        raise PansightError("expected both images= and masks=, or neither; found one", where=root)
    if images is not None and masks is not None:
        parts = [*part_names(split), *(n for n in part_folders(root) if split is not None and means_split(n, split))]
        place = next((root / part for part in parts if (root / part).is_dir()), root)
        folders = named_folder(place, images), named_folder(place, masks, "a folder of PNGs")
        return InstancePng(*folders, thing or "object", background)
    found = find_layout(root, split)
    if found is None:
        layouts = " or ".join(f"{a}/ + {b}/" for a, b, _ in LAYOUTS)
        where = f"{root}/{split}" if split else str(root)
        raise PansightError(where=where, expected=f"{layouts} (instance PNGs)", found="neither")
    return InstancePng(found[0], found[1], thing or found[2], background)

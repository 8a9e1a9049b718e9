"""Read Cityscapes, ADE20K and Mapillary Vistas in their official panoptic layouts, without conversion.

Each has panoptic files of its own, made by a script of the makers or part of the download; they are COCO panoptic under
other names, with these peculiarities:

Cityscapes (createPanopticImgs of cityscapesScripts): ``gtFine/cityscapes_panoptic_<split>.json``, images in one folder
per city. The JSON calls the images ``*_gtFine_leftImg8bit.png``, which exist nowhere; their true names follow from the
image ids. ADE20K (the preparation script of MaskFormer): ``ade20k_panoptic_<split>.json`` beside ``images/``; areas
of stuff were counted before things were painted over it, so a segment may have no pixel left; nothing here uses those
areas, and such segments are left out. Vistas: ``panoptic_2018.json`` (v1.2), ``panoptic_2020.json`` (v2.0) in the
folder of its PNGs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pansight.data.dataset import SPLITS, expect, part_names
from pansight.data.formats.coco_panoptic import CocoPanoptic, read_coco_json
from pansight.errors import PansightError, choice_error

VISTAS_JSON = {"2.0": "panoptic_2020.json", "1.2": "panoptic_2018.json"}
"""Version of Mapillary Vistas → its panoptic file; where both are there, the first is taken."""

VISTAS_PARTS = {"training": "train", "validation": "val"}
"""Folder of a part → its split."""


class Official(NamedTuple):
    """How to recognise an official layout, and where its panoptic files are."""

    recognise: Callable[[Path], bool]  # whether a folder is the root of the set, with panoptic files or without
    annotations: Callable[[Path], dict[str, Path]]  # root → {split: panoptic JSON}
    stems: tuple[str, ...]  # how the names of its panoptic files begin


# --- finding ---------------------------------------------------------------------------------------------------------


def root_of(source: Path, recognise: Callable[[Path], bool]) -> Path:
    """The root that is meant by itself, by its gtFine or training folder, or by a file in it; else `source` itself."""
    inner = source.name == "gtFine" or source.name in VISTAS_PARTS
    around = source.parents[:4] if source.is_file() else [source.parent] if inner else []
    return next((folder for folder in (source, *around) if recognise(folder)), source)


def is_cityscapes_root(root: Path) -> bool:
    return (root / "gtFine").is_dir()


def cityscapes_jsons(root: Path, ids: str = "label") -> dict[str, Path]:
    """Split → panoptic file; where both are there, that with label ids or that with train ids."""
    names = {"label": "cityscapes_panoptic_{}.json", "train": "cityscapes_panoptic_{}_trainId.json"}
    files = {kind: _existing({s: root / "gtFine" / name.format(s) for s in SPLITS}) for kind, name in names.items()}
    return files["train"] | files["label"] if ids == "label" else files["label"] | files["train"]


def is_ade20k_root(root: Path) -> bool:
    """Images by part, and something that only ADE20K has: other sets have annotations/training too."""
    if not any((root / "images" / part).is_dir() for part in _ADE20K_PARTS):
        return False
    marks = (root / "annotations_instance", root / "objectInfo150.txt", *ade20k_jsons(root).values())
    return any(mark.exists() for mark in marks)


def ade20k_jsons(root: Path) -> dict[str, Path]:
    return _existing({split: root / f"ade20k_panoptic_{split}.json" for split in SPLITS})


def is_vistas_root(root: Path) -> bool:
    """A part has images and, flat or by version, 16-bit instances or panoptic PNGs with the names of the set."""
    for part in VISTAS_PARTS:
        folder = root / part
        if (folder / "images").is_dir():
            if any((folder / f"v{version}").is_dir() for version in VISTAS_JSON):
                return True
            if (folder / "instances").is_dir() and (folder / "labels").is_dir():
                return True
    return False


def vistas_jsons(root: Path, version: str | None = None) -> dict[str, Path]:
    """Split → panoptic file of a version, else of the newest that the part has."""
    found: dict[str, Path] = {}
    for part, split in VISTAS_PARTS.items():
        for number in VISTAS_JSON if version is None else (version,):
            places = (root / part / f"v{number}" / "panoptic", root / part / "panoptic")
            files = [place / VISTAS_JSON[number] for place in places if (place / VISTAS_JSON[number]).is_file()]
            if files and split not in found:
                found[split] = files[0]
    return found


_ADE20K_PARTS = {"training": "train", "validation": "val"}

OFFICIAL: dict[str, Official] = {
    "cityscapes": Official(is_cityscapes_root, cityscapes_jsons, ("cityscapes_panoptic_",)),
    "ade20k": Official(is_ade20k_root, ade20k_jsons, ("ade20k_panoptic_",)),
    "vistas": Official(is_vistas_root, vistas_jsons, tuple(Path(name).stem for name in VISTAS_JSON.values())),
}


def official_format(source: Path, with_panoptic: bool) -> str | None:
    """The key in OFFICIAL of the set whose root (or gtFine folder, or panoptic file) is `source`; None where of none.

    with_panoptic: only a set that has its panoptic files.
    """
    for name, layout in OFFICIAL.items():
        root = root_of(source, layout.recognise)
        meant = source.is_dir() or source.name.startswith(layout.stems)
        if meant and layout.recognise(root) and (layout.annotations(root) or not with_panoptic):
            return name
    return None


def official_splits(source: Path, name: str) -> tuple[str, ...]:
    """Which of train, val and test have a panoptic file; empty where `source` is one of these files, or a part."""
    root = root_of(source, OFFICIAL[name].recognise)
    if source.is_file() or _named_part(source, root) is not None:
        return ()
    found = OFFICIAL[name].annotations(root)
    return tuple(split for split in SPLITS if split in found)


def _named_part(source: Path, root: Path) -> str | None:
    """The split that a folder below the root stands for."""
    return VISTAS_PARTS.get(source.name) if source != root else None


def _existing(files: Mapping[str, Path]) -> dict[str, Path]:
    return {key: file for key, file in files.items() if file.is_file()}


# --- opening ---------------------------------------------------------------------------------------------------------


def open_cityscapes(source: str | Path, split: str | None = None, ids: str = "label") -> CocoPanoptic:
    """Cityscapes: gtFine/cityscapes_panoptic_SPLIT.json of createPanopticImgs, images in leftImg8bit/SPLIT/CITY.

    ids: "label" for category ids 7 … 33, "train" for 0 … 18, where both files are there. Raises PansightError saying
    what to download or to run.
    """
    root = root_of(Path(source), is_cityscapes_root)
    if ids not in ("label", "train"):
        raise choice_error("category ids", ids, ("label", "train"))
    known = cityscapes_jsons(root, ids)
    how = "run createPanopticImgs of cityscapesScripts"
    part, file = _panoptic_file(
        Path(source), root, known, split, "gtFine/cityscapes_panoptic_*.json", how, "cityscapes"
    )
    images = root / "leftImg8bit" / part
    _expect_images(images, "leftImg8bit_trainvaltest.zip")
    content = _renamed(read_coco_json(file), file, cityscapes_image_name)
    return CocoPanoptic(file, images, file.with_suffix(""), content)


def cityscapes_image_name(row: Mapping[str, Any]) -> str | None:
    """CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png from the image id; None where the id has another form."""
    image_id = row.get("id")
    if not isinstance(image_id, str) or image_id.count("_") < 2:
        return None
    return f"{image_id.split('_')[0]}/{image_id}_leftImg8bit.png"


def open_ade20k(source: str | Path, split: str | None = None) -> CocoPanoptic:
    """ADE20K scene parsing (ADEChallengeData2016): ade20k_panoptic_SPLIT.json and its PNGs beside images/.

    Raises PansightError saying what to download or to run.
    """
    root = root_of(Path(source), is_ade20k_root)
    how = "run the panoptic preparation script of MaskFormer"
    known = ade20k_jsons(root)
    part, file = _panoptic_file(Path(source), root, known, split, "ade20k_panoptic_*.json", how, "ade20k")
    folder = next((folder for folder, name in _ADE20K_PARTS.items() if name == part), part)
    images = root / "images" / folder
    _expect_images(images, "ADEChallengeData2016.zip")
    return CocoPanoptic(file, images, file.with_suffix(""), read_coco_json(file), absent_segments=True)


def open_vistas(source: str | Path, split: str | None = None, version: str | None = None) -> CocoPanoptic:
    """Mapillary Vistas: training/[vVERSION/]panoptic/panoptic_2018.json (v1.2) or panoptic_2020.json (v2.0).

    version: "1.2" or "2.0"; without one, the newest that is there. Raises PansightError saying what is missing.
    """
    if version is not None and version not in VISTAS_JSON:
        raise choice_error("version of Vistas", version, VISTAS_JSON)
    root = root_of(Path(source), is_vistas_root)
    names = " or ".join(VISTAS_JSON.values()) if version is None else VISTAS_JSON[version]
    known, how = vistas_jsons(root, version), "it is in the zip of the set"
    looked = f"training/[v{version or '…'}/]panoptic/{names}"
    part, file = _panoptic_file(Path(source), root, known, split, looked, how, "vistas")
    images = root / {split: folder for folder, split in VISTAS_PARTS.items()}.get(part, part) / "images"
    _expect_images(images, "the zip of the set")
    return CocoPanoptic(file, images, file.parent, read_coco_json(file))


def _panoptic_file(
    source: Path, root: Path, known: dict[str, Path], split: str | None, looked: str, how: str, name: str
) -> tuple[str, Path]:
    """(split, its panoptic file), from `source` where that is one. Raises PansightError saying how to come by it."""
    if source.is_file():
        folders = source.relative_to(root).parts[:-1] if source.is_relative_to(root) else ()
        words = (*source.stem.split("_"), *folders)
        part = next((part for word in words for part, names in SPLITS.items() if word in names), None)
        if part is None:
            raise PansightError(
                where=source, expected="a file or folder named after its part (train, val)", found="neither"
            )
        return part, source
    if not known:
        hint = f"{how}, or convert the raw annotations: pansight convert {root} --from {name} --to OUT"
        raise PansightError(where=root, expected=f"{looked} (panoptic annotations)", found="none", hint=hint)
    split = split or _named_part(source, root)
    wanted = part_names(split or "train")
    part = next((part for part in known if part in wanted), next(iter(known)) if split is None else None)
    if part is None:
        raise PansightError(where=root, expected=f"a part {split!r}", found=", ".join(known))
    return part, known[part]


def _expect_images(folder: Path, archive: str) -> None:
    if not folder.is_dir():
        raise PansightError(
            where=folder, expected=f"the images ({archive})", found="no such folder", code="missing_file"
        )


def _renamed(
    content: dict[str, Any], source: Path, name_of: Callable[[Mapping[str, Any]], str | None]
) -> dict[str, Any]:
    """The same content with the images' names replaced."""
    images: list[dict[str, Any]] = []
    for row in content["images"]:
        name = name_of(row)
        expect(name is not None, source, "image ids CITY_SEQUENCE_FRAME", row.get("id"))
        images.append({**row, "file_name": name})
    return {**content, "images": images}

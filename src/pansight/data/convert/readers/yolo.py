"""YOLO segmentation: data.yaml, images/, labels/*.txt with one polygon a line (docs.ultralytics.com/datasets/segment).

A line is ``class x1 y1 x2 y2 …``, coordinates as shares of width and height; an odd number behind the last pair is a
score. Parts of one object are joined by bridges of no width, which the even-odd rule of drawing leaves without pixels.
An image without label file has no objects. Written by Ultralytics, Roboflow, CVAT and Label Studio, whose data.yaml
differ in what their paths are relative to: of each path the longest tail that exists in the folder is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pansight.data.convert.class_table import PixelClass, checked_classes, find_class_table, read_classes
from pansight.data.convert.lookup import choose_part, files_ending, image_size, short_names, stems, walk_images
from pansight.data.convert.polygons import expect_short, region_of_polygons
from pansight.data.convert.source import Annotated, Region, Source, SourceCategory, with_damaged
from pansight.data.dataset import SPLITS, part_folders, split_of
from pansight.data.paths import find_tail, locate_all
from pansight.errors import PansightError, choice_error
from pansight.files import open_plain, read_plain, read_text

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
MAX_YAML_BYTES = 200_000
MARGIN = 0.1
"""How far outside the image a coordinate may lie, as a share of its side: tools round; pixels instead of shares are
found out by the first value above."""


class _YoloSeg:
    def __init__(
        self,
        classes: list[PixelClass],
        images: list[tuple[str, Path, Path]],
        boxes: str,
        notes: tuple[str, ...],
    ):
        self.categories = tuple(SourceCategory(c.name, c.value) for c in classes)
        self.notes = notes
        self._known = {c.value: index for index, c in enumerate(classes)}
        self._images, self._boxes = images, boxes
        self._image_ids = stems([name for name, _, _ in images])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Annotated:
        name, image, label = self._images[index]
        size = image_size(image)
        regions: list[Region] = []
        empty: list[int] = []
        for number, line in enumerate(_lines(label), 1):
            expect_short(line, " ", f"{label}: line {number}")
            words = line.split()
            if not words or (len(words) in (5, 6) and self._boxes == "skip"):
                continue
            category, region = self._region(words, size, f"{label}: line {number}")
            if region is None:
                empty.append(category)
            else:
                regions.append(region)
        return Annotated(self._image_ids[index], name, image, size, tuple(regions), empty=tuple(empty))

    def _region(self, words: list[str], size: tuple[int, int], where: str) -> tuple[int, Region | None]:
        """(index of the class, what is drawn) of a line."""
        try:
            values = np.array([float(word) for word in words])
        except ValueError as error:
            raise PansightError(where=where, expected="numbers", found=f"{' '.join(words)!r:.60}") from error
        category = self._known.get(int(values[0])) if np.isfinite(values[0]) and values[0] % 1 == 0 else None
        if category is None:
            known = f"{min(self._known)} … {max(self._known)}"
            raise PansightError(
                where=where, expected=f"a class {known} of the list of names", found=f"{words[0]!r:.60}"
            )
        score = 1.0
        if len(values) > 5 and len(values) % 2 == 0:
            score, values = float(values[-1]), values[:-1]
        if len(values) == 3:  # one point
            return category, None
        if len(values) < 5 or not 0 <= score <= 1:
            found = " ".join(words[:9])
            raise PansightError(where=where, expected="a class, x, y pairs and perhaps a score", found=f"{found!r:.60}")
        if not (np.abs(values[1:] - 0.5) <= 0.5 + MARGIN).all():
            found = next(w for w, v in zip(words[1:], values[1:]) if not abs(v - 0.5) <= 0.5 + MARGIN)
            raise PansightError(where=where, expected="coordinates 0 … 1 (shares of the image)", found=f"{found:.60}")
        if len(values) == 5:
            if self._boxes == "error":
                hint = "option boxes=rectangle fills it, boxes=skip leaves it out"
                raise PansightError(where=where, expected="a polygon", found="a box (4 numbers", hint=f"{hint})")
            x, y, w, h = values[1:] / (1, 1, 2, 2)
            values = np.array([0, x - w, y - h, x + w, y - h, x + w, y + h, x - w, y + h])
        points = values[1:].reshape(-1, 2) * (size[1], size[0])  # (2N,) → (N, 2)
        return category, region_of_polygons([points], size, category, where, score=score)


def open_yolo_seg(source: Path, split: str | None = None, *, boxes: str = "error") -> Source:
    """YOLO segmentation: a folder with data.yaml (or classes.txt), images and labels, or the YAML file itself.

    boxes: what to do with lines that give a box and no polygon: "error", "rectangle" (filled) or "skip".
    Raises PansightError where names or images are not found, a path leaves the folder, or no image has labels; an image
    raises it, naming file and line, for anything that is no polygon of a known class.
    """
    if boxes not in ("error", "rectangle", "skip"):
        raise choice_error("boxes", boxes, ("error", "rectangle", "skip"))
    source = Path(source)
    root = source if source.is_dir() else source.parent
    file = _yaml_of(source)
    if file is not None:
        content = _read_yaml(file)
        if "kpt_shape" in content:
            raise PansightError(where=file, expected="polygons", found="key points (kpt_shape)")
        classes = _yaml_classes(content, file)
        there, missing = _yaml_parts(content, root, file)
        part, note = choose_part(there or missing, split, file)
        if part is None:
            raise PansightError(where=file, expected="paths under train, val or test", found="none")
        images, notes, absent = _listed_images((there | missing)[part], _yaml_root(root, content), file)
        notes += () if note is None else (note,)
        notes += tuple(f"{file.name}: the part {name!r} is not there and is left out" for name in missing)
    else:
        table = find_class_table((root, root / "labels"))
        if table is None:
            raise PansightError(where=root, expected="data.yaml with names of classes (or classes.txt)", found="none")
        classes = read_classes(table)
        folders = dict(_image_folders(root))
        part, note = choose_part([name for name in folders if name], split, root) if "" not in folders else ("", None)
        folder = folders.get(part or "")
        if folder is None or (split is not None and not part):
            raise PansightError(
                where=root, expected=f"images/ and labels/{f' of {split!r}' if split else ''}", found="none"
            )
        images, notes, absent = list(walk_images(folder)), () if note is None else (note,), None
    if not images:
        raise PansightError(where=root, expected="images", found="none")
    entries, more, lost = _with_labels(images, root, absent)
    return with_damaged(_YoloSeg(classes, entries, boxes, notes + more), lost)


def is_yolo_seg(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    try:
        if _has_yaml(source) or _yaml_of(source) is not None:
            return True
        return any(_any_text(_label_file(image, source)) for _, image in _first_images(source))
    except (OSError, ValueError, PansightError):
        return False


def splits_yolo_seg(source: Path) -> tuple[str, ...]:
    """The parts of data.yaml that are there; without it those that have folders of images."""
    try:
        file = _yaml_of(source)
        if file is None:
            return tuple(part for part, _ in _image_folders(source) if part)
        return tuple(_yaml_parts(_read_yaml(file), file.parent, file)[0])
    except (OSError, ValueError, PansightError):
        return ()


# --- data.yaml -------------------------------------------------------------------------------------------------------


class _PlainLoader(yaml.BaseLoader):
    """Texts, lists and mappings only: a class may be called ``no``, and nothing repeats itself into gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name)")
        return super().compose_node(parent, index)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_YAML_BYTES:
            raise PansightError(where=file, expected="a short YAML file", found=f"{file.stat().st_size} bytes")
        content = yaml.load(read_plain(file), _PlainLoader)
    except OSError as error:
        raise PansightError("cannot be read", where=file, reason=error.strerror or error, code="cannot_read") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise PansightError(where=file, expected="plain YAML", found=f"{' '.join(str(error).split()):.120}") from error
    if not isinstance(content, dict):
        raise PansightError(f"expected a YAML mapping with names, train, val; found {content!r:.60}", where=file)
    return content


def _yaml_of(source: Path) -> Path | None:
    """The YAML file with names of classes; None where there is none."""
    if source.is_file():
        candidates = [source] if source.suffix.lower() in (".yaml", ".yml") else []
    else:
        usual = [source / name for name in YAML_NAMES]
        candidates = [f for f in usual if f.is_file()]
        candidates = candidates or sorted([*files_ending(source, ".yaml"), *files_ending(source, ".yml")])[:9]
    for file in candidates:
        content = _read_yaml(file)
        if "names" in content and any(_part_keys(content)):
            return file
    return None


def _has_yaml(source: Path) -> bool:
    """Whether a file of the usual name speaks of names and parts, be it damaged or not."""
    usual = [source / name for name in YAML_NAMES if (source / name).is_file()]
    texts = [file.read_bytes()[:MAX_YAML_BYTES] for file in usual]
    return any(b"names" in text and any(part in text for part in (b"train", b"val", b"test")) for text in texts)


def _yaml_classes(content: dict[str, Any], file: Path) -> list[PixelClass]:
    names = content.get("names")
    rows = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(rows, dict) or not all(isinstance(name, str) for name in rows.values()):
        raise PansightError(where=file, expected="names as a list or a mapping number → name", found=f"{names!r:.60}")
    numbers = [str(number) for number in rows]
    bad = next((n for n in numbers if not n.isdecimal() or len(n) > 6), None)
    if bad is not None:
        raise PansightError(where=file, expected="names by class number", found=f"{bad!r:.60}")
    stated = content.get("nc", str(len(rows)))
    if stated != str(len(rows)):
        raise PansightError(where=file, expected=f"as many names as nc says ({stated!r:.20})", found=len(rows))
    return checked_classes([PixelClass(str(v).strip(), int(n)) for n, v in zip(numbers, rows.values())], file)


def _yaml_parts(content: dict[str, Any], root: Path, file: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """{part: paths} of the parts of which something is there, and of those of which nothing is."""
    there: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    base = _yaml_root(root, content)
    for part in _part_keys(content):
        value = content.get(part)
        texts = value if isinstance(value, list) else [value] if value else []
        if not all(isinstance(text, str) and text for text in texts):
            raise PansightError(
                where=file, expected=f"a path or a list of paths under {part!r}", found=f"{value!r:.60}"
            )
        if texts:
            (there if any(find_tail([base], text) for text in texts) else missing)[part] = texts
    return there, missing


def _part_keys(content: dict[str, Any]) -> list[str]:
    """The keys under which paths of parts stand, training parts first."""
    keys = [key for key in content if isinstance(key, str) and split_of(key) is not None and content[key]]
    return sorted(keys, key=lambda key: list(SPLITS).index(split_of(key) or ""))


# --- where images and labels are -------------------------------------------------------------------------------------


def _yaml_root(root: Path, content: dict[str, Any]) -> Path:
    """The folder that paths are relative to: `path` where it exists in the folder of the file, else that folder."""
    text = content.get("path")
    return (find_tail([root], text) or root) if isinstance(text, str) and text else root


def _listed_images(
    texts: list[str], root: Path, file: Path
) -> tuple[list[Path], tuple[str, ...], list[PansightError] | None]:
    """The images of folders and of file lists, notes on paths that were not taken by the letter, and an error for every
    line whose image is missing; None where there are folders alone.
    """
    images: list[Path] = []
    absent: list[PansightError] | None = None
    notes: list[str] = []
    for text in texts:
        place = find_tail([root], text)
        if place is None:
            raise PansightError(
                where=file, expected=f"{text!r:.120} inside {root}", found="no such folder or file", code="missing_file"
            )
        if place != root / text:
            notes.append(f"{file.name}: {text!r} is read as {place.relative_to(root).as_posix()!r}")
        if place.is_dir():
            images += walk_images(place)
            continue
        lines = {number: line.strip() for number, line in enumerate(_lines(place), 1) if line.strip()}
        found = locate_all(list(lines.values()), [place.parent, root])
        absent = absent or []
        for (number, line), image in zip(lines.items(), found.files):
            if image is None:
                where = f"{place}: line {number}"
                absent.append(PansightError(where=where, expected=f"an image in {root}", found=f"{line!r:.120}"))
            else:
                images.append(image.path)
        notes += found.notes
    if absent and not images:
        raise absent[0]
    return list(dict.fromkeys(images)), tuple(notes), absent


def _lines(file: Path) -> list[str]:
    """Of a text file; none where it does not exist."""
    return read_text(file, "lines").splitlines() if os.path.lexists(file) else []


def _image_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """(part or "", folder of images) in a tree without data.yaml; folders by part first."""
    parts = part_folders(root, root / "images")
    found = [(p, f) for p in parts for f in (root / "images" / p, root / p / "images") if f.is_dir()]
    yield from found
    if not found and (root / "images").is_dir():
        yield "", root / "images"


def _first_images(root: Path) -> Iterator[tuple[str, Path]]:
    for part, folder in _image_folders(root):
        for count, image in enumerate(walk_images(folder)):
            if count == 20:
                break
            yield part, image


def _label_file(image: Path, root: Path) -> Path:
    """``…/images/…/a.jpg`` → ``…/labels/…/a.txt``, by the last such folder below `root`; else beside the image."""
    parts = list(image.relative_to(root).parts[:-1])
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    folder = root.joinpath(*parts)
    capital = folder / f"{image.stem}.TXT"
    return capital if capital.is_file() else folder / f"{image.stem}.txt"


def _any_text(label: Path) -> bool:
    """Whether a label file begins like one: a line of numbers."""
    try:
        with open_plain(label) as file:
            words = file.readline(4096).decode("ascii").split()[:5]
        return len(words) == 5 and all(float(word) == float(word) for word in words)
    except (OSError, ValueError):
        return False


def _with_labels(
    images: list[Path], root: Path, absent: list[PansightError] | None
) -> tuple[list[tuple[str, Path, Path]], tuple[str, ...], list[PansightError]]:
    """[(name in the output, image, label file)], notes, and an error for every image that is missing. Names begin below
    the folder that all images share. absent: those that a list of images names; None: the images are those of folders,
    where each label file speaks of one.
    """
    entries = [(name, image, _label_file(image, root)) for name, image in zip(short_names(images), images)]
    labels = {label for _, _, label in entries}
    if len(labels) < len(entries):
        raise PansightError(
            where=root, expected="one image a label file", found=f"{len(entries)} for {len(labels)} of them"
        )
    present = {file for folder in {label.parent for label in labels} for file in files_ending(folder, ".txt")}
    missing, lost = labels - present, {f for f in present - labels if f.name not in ("classes.txt", "notes.txt")}
    if len(missing) == len(labels):
        raise PansightError(
            where=entries[0][2], expected="label files like this one", found=f"none for {len(labels)} images"
        )
    notes: list[str] = []
    if missing:
        notes.append(f"{len(missing)} of {len(images)} images have no label file: they have no objects")
    if lost and absent is not None:  # they may be labels of the images of another part
        notes.append(f"{len(lost)} label files have no image among those read, the first is {min(lost).name}")
    if absent is None:
        absent = [PansightError(where=file, expected="an image of this name", found="none") for file in sorted(lost)]
    return entries, tuple(notes), absent

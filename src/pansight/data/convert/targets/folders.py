"""Write the formats that are folders of files: class PNGs, YOLO segmentation, Cityscapes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from pansight.data.categories import category_table
from pansight.data.convert.overlap import Resolved
from pansight.data.convert.source import Annotated
from pansight.data.convert.targets.outlines import one_outline, outlines
from pansight.data.dataset import SPLITS
from pansight.data.images import encode_png
from pansight.errors import PansightError
from pansight.files import write_bytes, write_json, write_text
from pansight.ops.idmap import boxes_xyxy, relabel
from pansight.types import LabelSpace


class SemanticPngTarget:
    """``labels/SPLIT/NAME.png`` with the index of the class, 255 = void; ``images/SPLIT/``; ``classes.json``.

    With more than 255 classes the PNGs have 16 bits and void is 65535.
    """

    def __init__(self, folder: Path, labels: LabelSpace):
        self.folder, self.labels = folder, labels
        self.void = 255 if len(labels) <= 255 else 65535
        self.notes = () if self.void == 255 else (f"more than 255 classes: 16-bit PNGs, void is {self.void}",)
        self._names = _Names()

    def image_file(self, split: str, file_name: str) -> Path:
        return self.folder / "images" / split / file_name

    def draw(self, image: Annotated, result: Resolved) -> bytes:
        """The PNG."""
        # one more, because relabel turns what it does not know into 0
        classes = relabel(result.ids, {s.id: s.category + 1 for s in result.segments}) - 1
        values = np.where(classes < 0, self.void, classes)
        return encode_png(values.astype(np.uint8) if self.void == 255 else values.astype(np.uint16))

    def add(self, split: str, image: Annotated, drawn: bytes) -> None:
        write_bytes(self.folder / "labels" / split / self._names.of(split, image.file_name, ".png"), drawn)

    def close(self) -> None:
        rows = self.labels.to_json()
        write_json(self.folder / "classes.json", [{**row, "id": c.id} for row, c in zip(rows, self.labels)])


class YoloSegTarget:
    """``labels/SPLIT/NAME.txt``: class and outline of each object, ``images/SPLIT/``, ``data.yaml``. Things only.

    An outline runs along the edges of the pixels; parts and holes hang on it by lines of no width, there and back, so
    that filling it as COCO does gives the same pixels again. x and y are shares of width and height.
    """

    def __init__(self, folder: Path, labels: LabelSpace):
        if not labels.things:
            raise PansightError(where="yolo_seg", expected="classes that are things", found="only stuff (see --things)")
        self.folder, self.labels = folder, labels
        self._numbers = {category.id: n for n, category in enumerate(labels.things)}
        self._names = _Names()
        self._splits: dict[str, None] = {}
        self._stuff, self._crowds = 0, 0

    @property
    def notes(self) -> tuple[str, ...]:
        left_out = {"stuff": self._stuff, "crowds": self._crowds}
        told = [f"{n} segments of {kind} are left out: YOLO has none" for kind, n in left_out.items() if n]
        missing = [part for part in ("train", "val") if part not in self._parts().values()]
        return (*told, *(f"there is no part {part!r}, which YOLO's data.yaml wants" for part in missing))

    def _parts(self) -> dict[str, str]:
        """Split → its key in data.yaml: "train2017" is train; where none is, the first one is."""
        keys = {split: next((p for p in SPLITS if split.startswith(p)), split) for split in self._splits}
        if not set(SPLITS) & set(keys.values()):
            keys |= dict.fromkeys(list(keys)[:1], "train")
        return keys if len(set(keys.values())) == len(keys) else {split: split for split in keys}

    def image_file(self, split: str, file_name: str) -> Path:
        return self.folder / "images" / split / file_name

    def draw(self, image: Annotated, result: Resolved) -> tuple[str, int, int]:
        """(lines of the objects, segments of stuff, crowds)."""
        stuff = crowds = 0
        boxes, lines = boxes_xyxy(result.ids), list[str]()
        scale = np.array([image.size[1], image.size[0]], np.float64)
        for segment in result.segments:
            if segment.category not in self._numbers or segment.is_crowd:
                crowds += segment.category in self._numbers
                stuff += segment.category not in self._numbers
                continue
            x1, y1, x2, y2 = boxes[segment.id]
            outline = one_outline(outlines(result.ids[y1:y2, x1:x2] == segment.id)) + np.array([x1, y1])
            shares = (outline / scale).reshape(-1)  # (N, 2) → (2N,)
            lines.append(" ".join([str(self._numbers[segment.category]), *(f"{v:.7g}" for v in shares.tolist())]))
        return "".join(f"{line}\n" for line in lines), stuff, crowds

    def add(self, split: str, image: Annotated, drawn: tuple[str, int, int]) -> None:
        text, stuff, crowds = drawn
        self._splits[split] = None
        self._stuff += stuff
        self._crowds += crowds
        write_text(self.folder / "labels" / split / self._names.of(split, image.file_name, ".txt"), text)

    def close(self) -> None:
        # JSON's strings are YAML's
        parts = [f"{part}: {json.dumps(f'images/{split}')}" for split, part in self._parts().items()]
        names = [f"  {self._numbers[c.id]}: {json.dumps(c.name)}" for c in self.labels.things]
        write_text(self.folder / "data.yaml", "\n".join(["path: .", *parts, "names:", *names]) + "\n")


class CityscapesTarget:
    """``gtFine/SPLIT/CITY/NAME_gtFine_{instanceIds,labelIds}.png`` and ``leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.*``.

    instanceIds (16 bit): label · 1000 + number for an object, the bare label for stuff and crowds, 0 for void.
    Classes go by Cityscapes' names. CITY is the first part of a NAME that is built as in the set, else "images".
    """

    def __init__(self, folder: Path, labels: LabelSpace):
        known = {row["name"]: row["id"] for row in category_table("cityscapes_all_labels")}
        strange = [c.name for c in labels if known.get(c.name, -1) < 0]
        if strange:
            found = f"{', '.join(strange[:5])}{' …' if len(strange) > 5 else ''}"
            raise PansightError(where="cityscapes", expected=f"classes of Cityscapes ({', '.join(known)})", found=found)
        self.folder, self.labels, self.notes = folder, labels, ()
        self._label = [known[c.name] for c in labels]
        self._names = _Names()

    def image_file(self, split: str, file_name: str) -> Path:
        city, name = _city(file_name)
        return self.folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit{Path(file_name).suffix}"

    def draw(self, image: Annotated, result: Resolved) -> tuple[bytes, bytes]:
        """(PNG of the objects, PNG of the labels)."""
        values: dict[int, int] = {}
        objects = [s for s in result.segments if self.labels[s.category].is_thing and not s.is_crowd]
        for segment in objects:  # numbers that came from Cityscapes stay
            if segment.id // 1000 == self._label[segment.category]:
                values[segment.id] = segment.id
        taken = set(values.values())
        for segment in result.segments:
            label = self._label[segment.category]
            if not self.labels[segment.category].is_thing or segment.is_crowd:
                values[segment.id] = label
            elif segment.id not in values:
                number = next((n for n in range(1000) if label * 1000 + n not in taken), None)
                if number is None:
                    name = self.labels[segment.category].name
                    raise PansightError(where=image.file_name, expected=f"at most 1000 objects of {name}", found="more")
                values[segment.id] = label * 1000 + number
                taken.add(values[segment.id])
        instance_ids = relabel(result.ids, values)
        label_ids = np.where(instance_ids < 1000, instance_ids, instance_ids // 1000)
        return encode_png(instance_ids.astype(np.uint16)), encode_png(label_ids.astype(np.uint8))

    def add(self, split: str, image: Annotated, drawn: tuple[bytes, bytes]) -> None:
        city, name = _city(self._names.of(split, image.file_name, ""))
        place = self.folder / "gtFine" / split / city
        write_bytes(place / f"{name}_gtFine_instanceIds.png", drawn[0])
        write_bytes(place / f"{name}_gtFine_labelIds.png", drawn[1])

    def close(self) -> None:
        """All is written."""


def _city(file_name: str) -> tuple[str, str]:
    """(city, name) of an image: "aachen_000000_000019_leftImg8bit.png" → ("aachen", "aachen_000000_000019")."""
    path = Path(file_name)
    name = path.stem.removesuffix("_leftImg8bit")
    built = re.fullmatch(r"(.+)_\d{6}_\d{6}", name)
    return (built[1], name) if built else ("images", "_".join([*path.parent.parts, name]))


class _Names:
    """Names of the files that belong to images: with the suffix exchanged, each only once."""

    def __init__(self):
        self._seen: set[tuple[str, str]] = set()

    def of(self, split: str, file_name: str, suffix: str) -> str:
        stem = Path(file_name).with_suffix("").as_posix()
        if (split, stem) in self._seen:
            raise PansightError(
                where=file_name, expected="names of images that differ before the suffix", found="one twice"
            )
        self._seen.add((split, stem))
        return stem + suffix

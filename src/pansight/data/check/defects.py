"""The table of defects that a data set can have: code, severity, meaning, and what `fix` does about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
"""error: a reader fails or a figure comes out wrong. warning: legal, and other tools trip over it. note: a fact."""

DROPPED = "image dropped"
BY_HAND = "by hand"


class Rule(NamedTuple):
    severity: Severity
    meaning: str
    remedy: str  # what `fix` does; DROPPED, BY_HAND, or "" where nothing is to be done


RULES: dict[str, Rule] = {
    # the file
    "not-json": Rule("error", "a file that is no JSON", BY_HAND),
    "structure": Rule("error", "a value of another type than the format's", "row dropped or value replaced"),
    "not-a-number": Rule("error", "NaN or Infinity, which JSON does not have", "replaced by null"),
    "empty": Rule("error", "a list that must not be empty", BY_HAND),
    # categories
    "duplicate-category": Rule("error", "a category id that stands for two classes", BY_HAND),
    "duplicate-name": Rule("error", "two categories of one name", "id added to the later name"),
    "isthing": Rule(
        "error", "a category that does not say whether it is a thing", BY_HAND + ", or --fix with --things"
    ),
    "categories-differ": Rule("warning", "a category that differs between the parts", ""),
    "category-gap": Rule("note", "category ids are not contiguous (legal: pansight maps them)", ""),
    # images and annotations
    "duplicate-image-id": Rule("error", "an image id twice", "the later row dropped"),
    "path": Rule("error", "a path that leaves the data folder", DROPPED),
    "path-tail": Rule("warning", "a path that leads elsewhere: of its tail a file is there, and is read", "that path"),
    "missing-annotation": Rule("error", "an image without an annotation", DROPPED),
    "unknown-image": Rule("error", "an annotation of an image that is not listed", "annotation dropped"),
    "several-annotations": Rule(
        "error", "more than one annotation of an image", "merged if of one PNG, else first kept"
    ),
    "no-folder": Rule(
        "error", "none of the files is where files are looked for", BY_HAND + ", or name it: --images, --panoptic"
    ),
    "missing-image": Rule("error", "a missing image file", DROPPED),
    "unreadable-image": Rule("error", "a damaged image, or no image at all", DROPPED),
    "missing-png": Rule("error", "a missing panoptic PNG", DROPPED),
    "unreadable-png": Rule("error", "a damaged panoptic PNG", DROPPED),
    "png-mode": Rule(
        "error", "a panoptic PNG that is not 8-bit RGB", "coded again if its ids are certain, else dropped"
    ),
    "png-alpha": Rule("warning", "a panoptic PNG with an alpha channel", "coded again without it"),
    "size-mismatch": Rule("error", "image and panoptic PNG differ in size", DROPPED),
    "stated-size": Rule("error", "height or width in the JSON is not the file's", "taken from the PNG"),
    "exif": Rule("warning", "an EXIF tag turns the image: tools that ignore it, and those that obey, differ", ""),
    "leak": Rule("error", "the same image in two parts (the same bytes)", "dropped from the part for training"),
    "duplicate-image": Rule("warning", "the same image twice in one part (the same bytes)", ""),
    # segments
    "segment-id": Rule("error", "a segment id that is no whole number 1 … 16777215", "segment dropped"),
    "duplicate-segment": Rule("error", "a segment id twice in an image", "merged if of one class, else dropped"),
    "unknown-category": Rule("error", "a segment of a category that is not listed", "segment dropped: void"),
    "undeclared-id": Rule("error", "an id in the PNG that the JSON lacks", "made void"),
    "no-pixels": Rule("error", "a segment without any pixel", "segment dropped"),
    "area": Rule("error", "an area that is not the number of pixels (panopticapi's PQ trusts it)", "counted again"),
    "box": Rule("error", "a box that is not the pixels'", "measured again"),
    "crowd-flag": Rule("error", "iscrowd that is neither 0 nor 1", "0 unless clearly true"),
    "stuff-split": Rule("error", "a stuff class in several segments of one image", "merged into the first"),
    # what a model can learn
    "no-objects": Rule("warning", "a part in which no object is left to learn: all are crowds", ""),
    "only-crowds": Rule("warning", "a class of which every object is a crowd, which no model learns", ""),
    "one-class": Rule("note", "only one of several classes has segments", ""),
    "no-stuff": Rule("note", "stuff classes, and no pixel of stuff", ""),
    # run lengths and polygons
    "object-area": Rule("warning", "an object's area that is far from its pixels", "pansight convert counts again"),
    "object-box": Rule("warning", "an object's box that is far from its pixels", "pansight convert measures again"),
    "mask": Rule("error", "a mask that cannot be decoded", "pansight convert"),
    "overlap": Rule("error", "segments that overlap", "pansight convert --overlap POLICY"),
    "objects-overlap": Rule("note", "an image whose objects overlap: legal, and convert needs an --overlap policy", ""),
}
"""Every code, in the order in which they are printed."""


class Defect(NamedTuple):
    """One thing that is wrong, in one place."""

    code: str  # a key of RULES
    severity: Severity
    file: str  # relative to the data folder
    image_id: str | int | None
    segment: int | str | None  # segment, annotation or category that it is about
    expected: str
    found: str
    fixable: bool  # `fix` repairs it without losing the image

    def line(self) -> str:
        """file: image 9: segment 5: expected …, found …"""
        place = [self.file]
        place += [] if self.image_id is None else [f"image {one_line(self.image_id)}"]
        place += [] if self.segment is None else [f"segment {self.segment}" if _whole(self.segment) else self.segment]
        return f"{': '.join(str(p) for p in place)}: expected {self.expected}, found {self.found}"


def defect(
    code: str,
    file: str,
    expected: str,
    found: str,
    image_id: str | int | None = None,
    segment: int | str | None = None,
    fixable: bool | None = None,
) -> Defect:
    """With the severity of its code; fixable where the code's remedy is a repair, unless told."""
    severity, _, remedy = RULES[code]
    if fixable is None:
        fixable = bool(remedy) and remedy != DROPPED and not remedy.startswith((BY_HAND, "pansight"))
    return Defect(code, severity, file, image_id, segment, expected, found, fixable)


@dataclass
class Findings:
    """Defects with their counts. keep: how many of each code are kept; None keeps all. blocking: the first of each
    code that only a person can settle."""

    keep: int | None = None
    defects: list[Defect] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    blocking: dict[str, Defect] = field(default_factory=dict)

    def add(self, defects: Iterable[Defect]) -> None:
        for found in defects:
            self.counts[found.code] += 1
            if RULES[found.code].remedy.startswith(BY_HAND) or (found.image_id is None and not _settled(found)):
                self.blocking.setdefault(found.code, found)
            if self.keep is None or self.counts[found.code] <= self.keep:
                self.defects.append(found)

    def number(self, severity: Severity) -> int:
        return sum(count for code, count in self.counts.items() if RULES[code].severity == severity)


def _settled(found: Defect) -> bool:
    return found.fixable or found.severity != "error"


# --- saying what was found, whatever it is ---------------------------------------------------------------------------


def _whole(value: object) -> bool:
    return type(value) is int


def one_line(value: object, limit: int = 80) -> str:
    """Text from a file, fit for a terminal: control characters and half characters as escapes, long text cut."""
    text = str(value) if not isinstance(value, int) else _digits(value)
    text = text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _digits(value: int) -> str:
    """A number as text; one of thousands of digits by its size (Python refuses to print the longest)."""
    return str(value) if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"


def shown(row: dict[str, Any], key: str) -> str:
    """The value under `key` in a few words; "nothing" where the key is missing."""
    return shown_value(row[key]) if key in row else "nothing"


def shown_value(value: object) -> str:
    """A JSON value of any type in a few words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return _digits(value)
    if isinstance(value, list):
        flat = len(value) <= 6 and all(v is None or isinstance(v, str | int | float) for v in value)
        return f"[{', '.join(shown_value(v) for v in value)}]" if flat else f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return one_line(json.dumps(value, ensure_ascii=False))
    return one_line(repr(value))

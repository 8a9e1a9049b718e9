"""The summary of a conversion, counted while it runs and shown at the end."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from pansight.data.convert.overlap import OVER_CROWD, OVER_MAP, Decision, Resolved
from pansight.data.convert.source import Annotated
from pansight.errors import PansightError
from pansight.types import LabelSpace

RULES = {
    OVER_MAP: "objects over the source's own map",
    OVER_CROWD: "objects over crowds",
}

SHOWN = 5
"""Rows of a long list on the terminal; the receipt has them all."""


class VanishedSegment(NamedTuple):
    """A segment of which no pixel is left."""

    split: str
    file_name: str  # of the image
    class_name: str
    pixels: int  # that it had before others were laid over it; 0: it covers no pixel


class OverlapCount(NamedTuple):
    """Pixels that two segments claimed and one kept."""

    rule: str  # the policy's name, "over-map" or "over-crowd"
    winner: str  # class names
    loser: str
    pixels: int


class Summary(NamedTuple):
    """What came out."""

    source: str
    format: str
    target: str
    to: str
    overlap: str  # the policy
    images: dict[str, int]  # by split
    segments: dict[str, int]  # by class, all classes
    things: tuple[str, ...]
    stuff: tuple[str, ...]
    crowds: int
    overlaps: tuple[OverlapCount, ...]  # most pixels first
    overlapping_images: int
    vanished: tuple[VanishedSegment, ...]
    pixels: int
    void: int  # pixels
    filled: int
    skipped: tuple[str, ...]  # a line for each image that was left out, with its cause
    notes: tuple[str, ...]

    @property
    def left_out(self) -> int:
        """Images, and annotations without a pixel: what a user may have meant and does not get."""
        return len(self.skipped) + sum(not gone.pixels for gone in self.vanished)

    def to_json(self) -> dict[str, Any]:
        rows = {"overlaps": [row._asdict() for row in self.overlaps], "vanished": [v._asdict() for v in self.vanished]}
        return {**self._asdict(), **rows}

    def text(self) -> str:
        """Some lines for a person."""
        images = ", ".join(f"{split} {count:,}" for split, count in self.images.items())
        rows = [
            ("images", images),
            ("segments", self._segments()),
            ("things", _list(self.things)),
            ("stuff", _list(self.stuff)),
            ("void", f"{_share(self.void, self.pixels)} of the pixels"),
        ]
        if self.filled:
            rows.append(("filled", f"{_share(self.filled, self.pixels)} of the pixels"))
        rows += [("overlap", line) for line in self._overlap_lines()]
        rows += [("vanished", line) for line in self._vanished_lines()]
        rows += [("left out", line) for line in self._skipped_lines()]
        rows += [("note", note) for note in self.notes]
        lines = [f"{self.source} ({self.format}) → {self.to} ({self.target})"]
        for n, (key, line) in enumerate(rows):
            lines.append(f"  {'' if n and rows[n - 1][0] == key else key:<9} {line}")
        return "\n".join(lines)

    def _skipped_lines(self) -> list[str]:
        lines = [f"{len(self.skipped):,} in all, each with its cause:"] if self.skipped else []
        lines += self.skipped[:SHOWN]
        more = len(self.skipped) - SHOWN
        return [*lines, f"… {more:,} more in convert.json"] if more > 0 else lines

    def _segments(self) -> str:
        things = sum(self.segments[name] for name in self.things)
        stuff = sum(self.segments[name] for name in self.stuff)
        crowds = f" ({self.crowds:,} of them crowds)" if self.crowds else ""
        return f"{things + stuff:,}: {things:,} things{crowds}, {stuff:,} stuff"

    def _overlap_lines(self) -> list[str]:
        lines: list[str] = []
        totals = Counter[str]()
        for row in self.overlaps:
            totals[row.rule] += row.pixels
        for rule, pixels in totals.items():
            what = RULES.get(rule, rule)
            pairs = [row for row in self.overlaps if row.rule == rule]
            most = ", ".join(f"{row.winner} over {row.loser} {row.pixels:,}" for row in pairs[:3])
            lines.append(f"{what}: {pixels:,} pixels ({most}{', …' if len(pairs) > 3 else ''})")
        if lines:
            lines.append(f"in {self.overlapping_images:,} of {sum(self.images.values()):,} images")
        return lines or [f"none ({self.overlap})"]

    def _vanished_lines(self) -> list[str]:
        if not self.vanished:
            return []
        covered = sum(1 for v in self.vanished if v.pixels)
        reasons = {"covered by others": covered, "without a pixel": len(self.vanished) - covered}
        lines = [f"{len(self.vanished):,} segments: " + ", ".join(f"{n:,} {why}" for why, n in reasons.items() if n)]
        for v in self.vanished[:SHOWN]:
            lines.append(f"{v.class_name} in {v.split}/{v.file_name} ({v.pixels:,} pixels)")
        if len(self.vanished) > SHOWN:
            lines.append(f"… {len(self.vanished) - SHOWN:,} more in convert.json")
        return lines


def _list(names: tuple[str, ...]) -> str:
    if len(names) <= 12:
        return ", ".join(names) or "none"
    return f"{', '.join(names[:10])} … ({len(names)} in all)"


def _share(pixels: int, total: int) -> str:
    return f"{100 * pixels / max(total, 1):.1f} %"


class Tally:
    """Counts up while a conversion runs."""

    def __init__(self, source: str, format: str, target: str, overlap: str, to: str, labels: LabelSpace):
        self.source, self.format, self.target, self.overlap, self.to = source, format, target, overlap, to
        self.labels = labels
        self._images: Counter[str] = Counter()
        self._segments: Counter[int] = Counter()
        self._decisions: Counter[Decision] = Counter()
        self._vanished: list[VanishedSegment] = []
        self._notes: dict[str, None] = {}
        self._crowds: Counter[int] = Counter()
        self._pixels = self._void = self._filled = self._overlapping = 0
        self._turned: Counter[str] = Counter()
        self._damaged: list[PansightError] = []
        self.skipped: list[PansightError] = []
        self._scored = False

    def note(self, lines: Iterable[str]) -> None:
        self._notes |= dict.fromkeys(lines)

    def turned(self, fits_turned: bool, fits_stored: bool) -> None:
        """An image whose EXIF tag asks to turn it."""
        self._turned["both" if fits_turned and fits_stored else "turned" if fits_turned else "stored"] += 1

    def damaged(self, error: PansightError) -> None:
        """An image file that is cut off and copied as it is."""
        self._damaged.append(_detached(error))

    def skip(self, error: PansightError) -> None:
        """An image that is left out."""
        self.skipped.append(_detached(error))

    def nothing_converted(self, total: int) -> PansightError:
        """The cause where all images were left out; a copy, since what is raised holds on to its surroundings."""
        first = copy.copy(self.skipped[0])
        return first if total == 1 else first.at(f"none of {total} images can be converted; the first")

    @property
    def converted(self) -> int:
        """Images that were added."""
        return self._images.total()

    def add(self, split: str, image: Annotated, result: Resolved) -> None:
        self._images[split] += 1
        self._segments.update(segment.category for segment in result.segments)
        self._crowds.update(segment.category for segment in result.segments if segment.is_crowd)
        self._decisions.update(result.decisions)
        self._overlapping += bool(result.decisions)
        for gone in result.vanished:
            name = self.labels[gone.category].name
            self._vanished.append(VanishedSegment(split, image.file_name, name, gone.pixels))
        self._pixels += image.size[0] * image.size[1]
        self._void += result.void
        self._filled += result.filled
        self._scored |= any(region.score != 1.0 for region in image.regions)

    def summary(self) -> Summary:
        names = self.labels.names
        overlaps = [
            OverlapCount(d.rule, names[d.winner], names[d.loser], pixels) for d, pixels in self._decisions.most_common()
        ]
        return Summary(
            source=self.source,
            format=self.format,
            target=self.target,
            to=self.to,
            overlap=self.overlap,
            images=dict(self._images),
            segments={name: self._segments[n] for n, name in enumerate(names)},
            things=tuple(c.name for c in self.labels.things),
            stuff=tuple(c.name for c in self.labels.stuff),
            crowds=self._crowds.total(),
            overlaps=tuple(overlaps),
            overlapping_images=self._overlapping,
            vanished=tuple(self._vanished),
            pixels=self._pixels,
            void=self._void,
            filled=self._filled,
            skipped=tuple(map(str, self.skipped)),
            notes=(*self._notes, *self._remarks()),
        )

    def _remarks(self) -> list[str]:
        remarks: list[str] = []
        if self.overlap == "score" and not self._scored and self._decisions:
            remarks.append("no annotation has a score: of those that overlap, the later one of the source lies on top")
        remarks += self._crowd_remarks()
        if self._turned:
            kinds = {
                "turned": "as turned",
                "stored": "to the stored pixels",
                "both": "both ways, and are read as turned",
            }
            told = "; ".join(f"{self._turned[key]} fit {what}" for key, what in kinds.items() if self._turned[key])
            remarks.append(f"{self._turned.total()} images have an EXIF turn; their annotations: {told}")
        if self._damaged:
            count, first = len(self._damaged), self._damaged[0]
            remarks.append(f"{count} image files are damaged and copied as they are (see pansight check): {first}")
        return remarks

    def _crowd_remarks(self) -> list[str]:
        """No model learns a class of which every object is a crowd, since the losses leave crowds out."""
        objects = {c.name: self._segments[n] for n, c in enumerate(self.labels) if c.is_thing and self._segments[n]}
        only = [
            name for n, name in enumerate(self.labels.names) if name in objects and self._crowds[n] == objects[name]
        ]
        if not only:
            return []
        if len(only) == len(objects):
            return [f"every object is a crowd ({self._crowds.total():,}): no object is left to learn"]
        return [f"classes of which every object is a crowd, which no model learns: {_list(tuple(only))}"]


def _detached(error: PansightError) -> PansightError:
    """Without its traceback, which would keep the whole source alive, and files that it unpacked."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)

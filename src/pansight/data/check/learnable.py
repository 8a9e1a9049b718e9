"""Warn of data from which a model learns less than its list of classes promises."""

from __future__ import annotations

from pansight.data.check.defects import Defect, defect, one_line
from pansight.data.check.reader import Part
from pansight.data.check.statistics import Statistics


def unlearnable(part: Part, counted: Statistics) -> list[Defect]:
    """Classes of crowds alone, which losses leave out, and classes that are listed but never seen.

    A part without any segment says nothing here.
    """
    where = part.show(part.json)
    seen = {number: count for number, count in counted.counts.items() if count.segments}
    objects = {number: count for number, count in seen.items() if part.classes[number].is_thing is not False}
    found: list[Defect] = []
    crowds = [number for number, count in objects.items() if count.crowds == count.segments]
    if objects and len(crowds) == len(objects):
        total = sum(count.segments for count in objects.values())
        found.append(defect("no-objects", where, "objects that are no crowds", f"none among {total}"))
    for number in crowds:
        place = f"category {one_line(number, 24)}"
        name, total = one_line(part.classes[number].name), objects[number].segments
        found.append(defect("only-crowds", where, f"an object of '{name}'", f"crowds only: {total}", None, place))
    if len(seen) == 1 < len(part.classes):
        name = one_line(part.classes[next(iter(seen))].name)
        found.append(defect("one-class", where, f"segments of {len(part.classes)} classes", f"of '{name}' alone"))
    if seen and part.kind == "panoptic":
        stuff = [row for row in part.classes.values() if row.is_thing is False]
        if stuff and not counted.pixels(False):
            found.append(defect("no-stuff", where, f"pixels of {len(stuff)} stuff classes", "none"))
    return found

"""Which images and classes of two sets of predictions belong together, and what has no counterpart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from pansight.data.formats.predictions.listing import (
    ClassRow,
    File,
    ImageId,
    ListedImage,
    label_space,
    listed_classes,
    listed_images,
    name_key,
    read_json_as,
)
from pansight.data.formats.predictions.objects import ObjectPredictions
from pansight.data.formats.predictions.semantic import SemanticPredictions
from pansight.errors import PansightError, shown
from pansight.files import decode_json, flat_name
from pansight.ops.fusion.label_spaces import MISSING, joined_labels
from pansight.types import LabelSpace

SHOWN = 5
"""Names in a line about many."""


class Reference(NamedTuple):
    """What says which images and classes are meant, of neither prediction; None: it does not say."""

    images: list[ListedImage] | None = None
    labels: LabelSpace | None = None


class Classes(NamedTuple):
    """The classes of the result, and the index that each number of a file stands for. notes: lines to be told."""

    labels: LabelSpace
    of_objects: Mapping[int, int]
    of_pixels: Mapping[int, int]
    notes: tuple[str, ...] = ()


class Pair(NamedTuple):
    """An image of both predictions. own_id: in the file of objects."""

    image: ListedImage
    own_id: ImageId


class _Annotation(msgspec.Struct):
    image_id: int | str
    file_name: str = ""


def read_reference(path: Path, classes_needed: bool) -> Reference:
    """Images and classes of a COCO JSON; of one without images, those of its annotations, if they name files.

    classes_needed: raise PansightError where it does not say which classes are things, instead of passing them over.
    """
    if path.suffix.lower() == ".json" and path.is_file() and _is_list(path):
        rows, file = _bare_categories(path), File()
    else:
        file = read_json_as(path, File, "a COCO JSON with images or categories")
        rows = listed_classes(file, path)
    images = listed_images(file, path)
    if not images and file.annotations:
        annotations = [decode_json(bytes(row), _Annotation, path) for row in file.annotations]
        images = [ListedImage(row.image_id, row.file_name) for row in annotations if row.file_name]
    open_row = next((row for row in rows or () if row.is_thing is None), None)
    if classes_needed and (rows is None or open_row is not None):
        found = "no categories" if open_row is None else f"{shown(open_row.name, 60)} without it"
        raise PansightError(where=path, expected="categories with id, name and isthing", found=found)
    labels = None if rows is None or open_row is not None else label_space(rows, True, path)
    return Reference(images or None, labels)


def _is_list(path: Path) -> bool:
    return path.read_bytes()[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _bare_categories(path: Path) -> list[ClassRow] | None:
    """A list of categories alone, as panopticapi has them."""
    rows = read_json_as(path, list[msgspec.Raw], "a list of categories")
    text = b'{"categories": [' + b",".join(bytes(row) for row in rows) + b"]}"
    return listed_classes(decode_json(text, File, path), path)


# --- classes ---------------------------------------------------------------------------------------------------------


def match_classes(objects: ObjectPredictions, semantic: SemanticPredictions, given: LabelSpace | None) -> Classes:
    """The classes of the result: those `given`, else the things of the one file and the stuff of the other, by name.

    A file that names its classes is matched by their names; the numbers of one that does not are source ids.
    Raises PansightError where nothing names the classes, and where a class is a thing here and stuff there.
    """
    if given is not None:
        return Classes(
            given,
            _things(_of_given(objects.classes, given, objects.path), given),
            _of_given(semantic.classes, given, semantic.path),
        )
    if objects.classes is not None and semantic.classes is not None:
        return _joined(objects.classes, semantic.classes, objects.path, semantic.path)
    for rows, path in ((semantic.classes, semantic.path), (objects.classes, objects.path)):
        if rows is not None and all(row.is_thing is not None for row in rows):
            return match_classes(objects, semantic, label_space(rows, True, path))
    missing = objects.path if objects.classes is None else semantic.path
    hint = "--categories FILE names the classes of numbers: a JSON of COCO categories with id, name and isthing"
    raise PansightError(where=missing, expected="a file that names its classes", found="numbers alone", hint=hint)


def _joined(of_objects: list[ClassRow], of_pixels: list[ClassRow], first: Path, second: Path) -> Classes:
    things = label_space(of_objects, True, first)
    known = {c.name for c in things.things}
    rows = [row if row.is_thing is not None else row._replace(is_thing=row.name in known) for row in of_pixels]
    try:
        joined = joined_labels(things, label_space(rows, False, second))
    except PansightError as error:
        raise error.at(f"{first}, {second}") from error
    return Classes(
        joined.labels,
        _things(_numbered(of_objects, joined.instances), joined.labels),
        _numbered(of_pixels, joined.semantic),
        joined.notes,
    )


def _numbered(rows: Sequence[ClassRow], indices: Sequence[int]) -> dict[int, int]:
    """A class that the result lacks is known all the same: it is told once, with the classes."""
    return {row.number: index for row, index in zip(rows, indices, strict=True)}


def _of_given(rows: list[ClassRow] | None, given: LabelSpace, path: Path) -> dict[int, int]:
    if rows is None:
        return {c.source_id: c.id for c in given}
    by_name = given.by_name()
    for row in rows:
        category = by_name.get(row.name)
        if category is not None and row.is_thing is not None and row.is_thing != category.is_thing:
            kinds = ["a thing" if kind else "stuff" for kind in (category.is_thing, row.is_thing)]
            raise PansightError(where=f"{path}: class {row.name!r:.80}", expected=kinds[0], found=kinds[1])
    return {row.number: by_name[row.name].id for row in rows if row.name in by_name}


def _things(numbers: Mapping[int, int], labels: LabelSpace) -> dict[int, int]:
    """Only things are counted as objects."""
    return {number: index for number, index in numbers.items() if index != MISSING and labels[index].is_thing}


# --- images ----------------------------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """The images of both, and what is told of the others: left_out was asked for and has no result."""

    pairs: list[Pair]
    left_out: list[PansightError]
    notes: list[str]


def pair_images(objects: ObjectPredictions, semantic: SemanticPredictions, wanted: list[ListedImage] | None) -> Pairs:
    """Each image of `wanted`, else of whatever file lists images, with its predictions of both files.

    Files that list images are matched by the names of these, others by ids. An image without a row in a bare list of
    results has no objects: nobody can tell it from a missing one, so their number is told.
    Raises PansightError where there is no image of both.
    """
    listing = semantic.images if semantic.names_images or not objects.images else objects.images
    images = listing if wanted is None else wanted
    pairs: list[Pair] = []
    left_out: list[PansightError] = []
    own_ids = _by_name(objects.images or ())
    with_rows = set(objects.image_ids)
    for image in images:
        own = _own_id(image, objects.images, own_ids, with_rows)
        missing = [
            path for path, lacks in ((objects.path, own is None), (semantic.path, not semantic.has(image))) if lacks
        ]
        if own is None or missing:
            name = shown(image.file_name or image.id, 80)
            left_out.append(PansightError(where=missing[0], expected=f"a prediction of image {name}", found="none"))
        else:
            pairs.append(Pair(image, own))
    strangers = bool(with_rows) and with_rows.isdisjoint(pair.own_id for pair in pairs)
    if not pairs or (strangers and objects.images is None):
        names = [_some(each) for each in ([i.file_name or i.id for i in images], _named(objects))]
        expected = f"images of both, such as {names[0]}"
        raise PansightError(where=objects.path, expected=expected, found=names[1] or "no image")
    used = {pair.own_id for pair in pairs}
    without = sum(pair.own_id not in with_rows for pair in pairs) if objects.images is None else 0
    notes = (
        [f"{without} of {len(pairs)} images have no object in {objects.path}: they get stuff alone"] if without else []
    )
    others = [i for i in objects.image_ids if i not in used]
    told = {image.id for image in images}
    others = [i for i in others if wanted is not None or objects.images is not None or i not in told]
    line = f"{len(others)} images of {objects.path} are not among the others: {_some(others)}" if others else ""
    if line and wanted is not None:
        notes.append(line)
    elif line:
        expected = f"the images of {semantic.path}"
        found = f"{len(others)} more: {_some(others)}"
        left_out.append(PansightError(where=objects.path, expected=expected, found=found))
    return Pairs(pairs, left_out, notes)


def _by_name(images: Iterable[ListedImage]) -> dict[str, ImageId]:
    """The id of an image by its name without suffix, also by that of its PNG in a flat folder."""
    exact = {name_key(image.file_name): image.id for image in images if image.file_name}
    flat = {name_key(flat_name(f"{key}.png", ".png", set())): own for key, own in exact.items()}
    return flat | exact


def _own_id(
    image: ListedImage, listed: list[ListedImage] | None, by_name: Mapping[str, ImageId], with_rows: set[ImageId]
) -> ImageId | None:
    """The id of an image in the file of objects; None where it lists images and not this one."""
    if listed is None:
        stem = name_key(image.file_name).rpartition("/")[2]
        return stem if image.id not in with_rows and stem in with_rows else image.id
    named = by_name.get(name_key(image.file_name)) if image.file_name else None
    if named is not None:
        return named
    return next((each.id for each in listed if each.id == image.id and not (each.file_name and image.file_name)), None)


def _named(objects: ObjectPredictions) -> list[str | int]:
    return [i.file_name or i.id for i in objects.images] if objects.images else list(objects.image_ids)


def _some(names: Sequence[str | int]) -> str:
    return ", ".join(shown(name, 60) for name in names[:SHOWN]) + (" …" if len(names) > SHOWN else "")

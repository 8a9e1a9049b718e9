"""The commands about data: convert, check, split. What a command needs is loaded when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter


def register(app: App) -> None:
    """Add the commands to the command line."""
    app.command(
        convert,
        help_epilogue="Examples: pansight convert export.zip --to mydata; "
        "pansight convert labelme/ --to mydata --things car,person --fill background; "
        "pansight convert mydata --as yolo_seg --to mydata_yolo; "
        "pansight convert mydata --as webdataset --to shards",
    )
    app.command(check, help_epilogue="Examples: pansight check DATA; pansight check DATA --fix DATA_fixed")
    app.command(split, help_epilogue="Examples: pansight split DATA --val 0.2 --seed 0; pansight split DATA --group _")


def convert(
    source: Path,
    /,
    *,
    to: Path,
    from_: Annotated[str, Parameter(name="--from")] = "auto",
    as_: Annotated[str, Parameter(name="--as")] = "coco_panoptic",
    split: str | None = None,
    overlap: str = "smaller-on-top",
    things: Annotated[tuple[str, ...] | None, Parameter(negative=())] = None,
    stuff: Annotated[tuple[str, ...] | None, Parameter(negative=())] = None,
    fill: str | None = None,
    images: str = "copy",
    option: dict[str, str] | None = None,
    strict: bool = False,
    overwrite: bool = False,
    jobs: int = 0,
) -> int:
    """Convert any annotations to COCO panoptic, or to another format. Exit code 1 where something was left out.

    Reads coco_instances, coco_detection_panoptic, coco_panoptic, cityscapes, ade20k, ade20k_full, vistas, voc,
    yolo_seg, labelme, cvat, label_studio, instance_png, semantic_png, id_maps, webdataset.
    Writes coco_panoptic, coco_instances, semantic_png, yolo_seg, cityscapes, webdataset.

    Parameters
    ----------
    source
        A folder, an annotation file or a ZIP.
    to
        The new folder: images, annotations, and convert.json, which says what was done. Appears whole or not at all.
    from_
        The format of the source; auto: found out by looking.
    as_
        The format to write.
    split
        Convert this part only. [default: all that are found]
    overlap
        Who keeps a pixel that several claim: smaller-on-top, larger-on-top, later-on-top, score; error: nobody.
    things
        All classes that are things (objects that are counted): A,B,C, numbers and ranges such as 17-64, or all, or
        none. The others are stuff. [default: as the source says; where it does not, you are asked]
    stuff
        In place of things: all classes that are stuff. The others are things.
    fill
        The stuff class, new or known, that takes the pixels without annotation. [default: they are void]
    images
        copy, hardlink, symlink or none.
    option
        Options of the reader, as --option.NAME VALUE (a wrong NAME is answered with those there are).
    strict
        Stop at what cannot be read (a damaged or missing photo, mask or file) instead of leaving it out and telling it.
    overwrite
        Replace what an earlier conversion wrote there.
    jobs
        So many images at a time; 0: as many as there are cores. What is written is the same.
    """
    from pansight.apps import converting

    return converting.convert_command(
        source, to, format=from_, target=as_, split=split, overlap=overlap, things=things, fill=fill, images=images,
        overwrite=overwrite, options=option or {}, stuff=stuff, strict=strict, jobs=jobs,
    )  # fmt: skip


def check(
    data: Path,
    /,
    *,
    fix: Path | None = None,
    things: str | None = None,
    json: Path | None = None,
    images: Path | None = None,
    panoptic: Path | None = None,
    limit: int = 20,
    link: bool = False,
    overwrite: bool = False,
    jobs: int = 0,
) -> int:
    """List everything that is wrong with a data set, and what it holds. Exit code 1 where there are errors.

    All parts that are found (train, val …) are read whole: annotations, images, PNGs, and what they have in common.
    Errors break a reader or a figure; warnings and notes do not count for the exit code, nor do errors after --fix.

    Parameters
    ----------
    data
        A COCO panoptic folder, its JSON file or a ZIP of it; COCO instances, the detection format, and everything else
        that convert reads.
    fix
        Write a repaired copy to this new folder; the original is never touched. What was done is in its repairs.json.
    things
        With --fix: the categories that are things, among those that do not say: A,B,C, or none.
    json
        Write everything to this file, too.
    images
        The folder of the images, where DATA is one JSON file and they are not found.
    panoptic
        The folder of the PNGs, likewise.
    limit
        Print so many defects of a kind and so many classes; 0: all.
    link
        With --fix: hard links to the images instead of copies.
    overwrite
        With --fix: replace a repaired copy that stands there.
    jobs
        So many images at a time; 0: as many as there are cores. What is found is the same.
    """
    from pansight.apps import checking

    return checking.check_command(data, fix, things, json, images, panoptic, limit, link, overwrite, jobs)


def split(
    data: Path,
    /,
    *,
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    group: str | None = None,
    part: str | None = None,
    out: Path | None = None,
    link: bool = False,
    overwrite: bool = False,
    things: Annotated[tuple[str, ...] | None, Parameter(negative=())] = None,
    jobs: int = 0,
) -> int:
    """Split a data set into train, val and, if wanted, test: each class with its share, equal files together.

    Parameters
    ----------
    data
        A COCO panoptic or COCO instances folder, its JSON file or a ZIP of it; anything else that convert reads becomes
        COCO panoptic.
    val
        The share of the images for validation.
    test
        The share of the images for a test part. [default: no such part]
    seed
        The same seed gives the same split.
    group
        Keep images together by name. A mark: the name up to it, so _ groups scene7_001.jpg and scene7_002.jpg.
        A number: so many characters. A regular expression: its first group, as in "(scene[0-9]+)".
    part
        Which part to split, where DATA has several: a name such as train2017.
    out
        The new folder. [default: DATA_split beside DATA]
    link
        Hard links instead of copies.
    overwrite
        Replace a split that stands there.
    things
        All classes that are things: A,B,C, or all, or none; for data that is not COCO and does not say.
    jobs
        So many images at a time; 0: as many as there are cores. What is written is the same.
    """
    from pansight.apps import checking

    return checking.split_command(data, val, seed, group, part, out, link, overwrite, test, things, jobs)

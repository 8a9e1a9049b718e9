"""The commands about data: convert, check, split. What a command needs is loaded when it runs."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App


def register(app: App) -> None:
    """Add the commands to the command line."""
    app.command(check, help_epilogue="Examples: pansight check DATA; pansight check DATA --fix DATA_fixed")
    app.command(split, help_epilogue="Examples: pansight split DATA --val 0.2 --seed 0; pansight split DATA --group _")


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
) -> int:
    """List everything that is wrong with a data set, and what it holds. Exit code 1 where there are errors.

    All parts that are found (train, val …) are read whole: annotations, images, PNGs, and what they have in common.
    Errors break a reader or a figure; warnings and notes do not count for the exit code, nor do errors after --fix.

    Parameters
    ----------
    data
        A COCO panoptic folder, its JSON file or a ZIP of it; COCO instances and the detection format are checked, too.
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
    """
    from pansight.apps import checking

    return checking.check_command(data, fix, things, json, images, panoptic, limit, link, overwrite)


def split(
    data: Path,
    /,
    *,
    val: float = 0.2,
    seed: int = 0,
    group: str | None = None,
    part: str | None = None,
    out: Path | None = None,
    link: bool = False,
    overwrite: bool = False,
):
    """Split a data set into train and val: each class with its share, images of the same bytes on one side.

    Parameters
    ----------
    data
        A COCO panoptic or COCO instances folder, its JSON file or a ZIP of it.
    val
        The share of the images for validation.
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
    """
    from pansight.apps import checking

    checking.split_command(data, val, seed, group, part, out, link, overwrite)

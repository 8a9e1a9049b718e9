"""The command that labels photos by a model. What it needs is loaded when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter


@dataclass(frozen=True)
class FillSettings:
    """Annotations whose void is filled."""

    fill_void: Path | None = None
    """Annotations in a format of pansight datasets. Only their void is filled: every annotated pixel stays."""
    split: str | None = None
    """The part of the annotations. [default: train where there are several]"""
    option: dict[str, str] | None = None
    """Options of their reader, as --option.NAME VALUE."""


def register(app: App) -> None:
    """Add the command to the command line."""
    app.command(
        label,
        help_epilogue="Examples: pansight label runs/scenes photos/ --out labelled --confidence 0.8; "
        "pansight label runs/scenes --fill-void mydata --classes road,sky --out filled",
    )


def label(
    weights: str,
    /,
    *photos: Path,
    out: Path,
    confidence: float = 0.7,
    classes: Annotated[tuple[str, ...] | None, Parameter(negative=())] = None,
    min_area: int = 16,
    threshold: float | None = None,
    recursive: bool = True,
    link: bool = False,
    strict: bool = False,
    batch_size: int = 1,
    overwrite: bool = False,
    fill: Annotated[FillSettings | None, Parameter(name="*", group="Existing annotations")] = None,
) -> int:
    """Write what a model is sure of as a data set to train on. Exit code 1 where a photo could not be used.

    The new folder is COCO panoptic, with label.html, a page to look at first. All of it appears, or nothing does.

    Parameters
    ----------
    weights
        A run folder, a saved model, a hub id or a checkpoint file.
    photos
        Image files, folders and patterns; with --fill-void the folder of the photos, where they lie apart.
    out
        The new folder: photos, PNGs, their JSON, label.json and label.html.
    confidence
        The least score of a segment, 0 … 1, or of a pixel of a semantic map; what is below is void.
    classes
        Classes of the model that are written: A,B,C, or things, stuff, all. [default: all; with --fill-void stuff]
    min_area
        Objects of fewer pixels become void.
    threshold
        How sure the model must be of a segment to show it at all, 0 … 1; left out: the model's own.
    recursive
        Look into sub-folders.
    link
        Hard links to the photos instead of copies.
    strict
        Stop at a photo or annotation that cannot be used, instead of leaving it out and telling it.
    batch_size
        Photos of equal size that are predicted at once.
    overwrite
        Replace what an earlier run wrote there.
    """
    from pansight.apps.photos import labelling

    fill = fill or FillSettings()
    result = labelling.label(
        weights,
        photos,
        out,
        confidence=confidence,
        fill_void=fill.fill_void,
        classes=classes or (),
        min_area=min_area,
        threshold=threshold,
        split=fill.split,
        options=fill.option,
        recursive=recursive,
        link=link,
        strict=strict,
        batch_size=batch_size,
        overwrite=overwrite,
    )
    print(labelling.label_table(result))
    print(f"look first:  {out / labelling.PAGE}\nthen:        pansight train --data {out}")
    return 1 if result.failed else 0

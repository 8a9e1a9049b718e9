"""The licences of known published weights; one line is logged when such weights are loaded.

Facts of the publishers' own pages. Code and weights often differ (MaskFormer's code is free, its weights are not for
commerce); what is said here is of the weights. Which of these counts for a model stands in its entry; nothing is known
of weights that someone trained in the same layout.
"""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from typing import NamedTuple

from pansight.errors import shown
from pansight.models import MODELS

log = logging.getLogger("pansight")


class Licence(NamedTuple):
    """name: as people write it. tag: as the front matter of a model card writes it. note: what to mind, or ""."""

    name: str
    tag: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.note})" if self.note else self.name


LICENCES = {
    "bsd-2-clause": Licence("BSD-2-Clause", "bsd-2-clause"),
    "bsd-3-clause": Licence("BSD-3-Clause", "bsd-3-clause"),
    "apache-2.0": Licence("Apache-2.0", "apache-2.0"),
    "mit": Licence("MIT", "mit"),
    "cc-by-sa-3.0": Licence("CC BY-SA 3.0", "cc-by-sa-3.0", "share alike"),
    "cc-by-nc-4.0": Licence("CC BY-NC 4.0", "cc-by-nc-4.0", "not for commercial use"),
    "upsnet": Licence("Uber Non-Commercial License", "other", "not for commercial use"),
    "gpl-3.0": Licence("GPL-3.0", "gpl-3.0", "for academic use; commercial use by agreement with its authors"),
    "dinov3": Licence("DINOv3 License", "other", "gated: its terms must be accepted, and go with every copy"),
}
"""By the word that stands in the entry of a model."""

HUB = (
    (r"facebook/detr-.+", "apache-2.0"),
    (r"facebook/(maskformer|mask2former)-.+", "cc-by-nc-4.0"),
    (r"(tue-mps|facebook)/.*dinov3.*", "dinov3"),
    (r"tue-mps/.+", "mit"),
)
"""Hub ids by pattern; the first that matches counts."""


def of_hub(hub_id: str) -> Licence | None:
    """The licence of a known family on the hub; None for others."""
    return next((LICENCES[word] for pattern, word in HUB if re.fullmatch(pattern, hub_id, re.IGNORECASE)), None)


def of_card(text: str) -> Licence | None:
    """The licence that a model card states in its front matter (``license: mit``); None where it states none."""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    stated = re.search(r"^license:\s*[\"']?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    if stated is None:
        return None
    if stated[1] == "other":
        return Licence("terms of its own", "other", "see its model card")
    return LICENCES.get(stated[1], Licence(stated[1], stated[1]))


def of_published(name: str) -> Licence | None:
    """The licence of the weights that were published for a model of MODELS; None where there are none."""
    return LICENCES.get(MODELS[name].licence)


def of_folder(folder: Path, hub_id: str | None = None) -> Licence | None:
    """The licence of a saved folder: of a known hub id, else what its model card states."""
    card = folder / "README.md"
    known = None if hub_id is None else of_hub(hub_id)
    try:
        return known or (of_card(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None)
    except OSError:
        return None


def show_folder(folder: Path, source: str, is_hub_id: bool) -> None:
    """Log the licence of a saved folder where it is known."""
    licence = of_folder(folder, source if is_hub_id else None)
    if licence is not None:
        show(f"licence    {source}: under {licence}")


def show_file(source: str, layout: str, name: str) -> None:
    """Log the licence of what was published in the layout of an official file: whose file it is, is not known."""
    licence = of_published(name)
    if licence is not None:
        show(f"licence    {source}: weights published in this layout ({layout}) are under {licence}")


@functools.cache
def show(line: str) -> None:
    """Log a line once in a process, so that loading the same weights twice says it once."""
    log.warning(shown(line, 1000))

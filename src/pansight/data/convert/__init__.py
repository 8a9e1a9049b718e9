"""Convert any annotations to COCO panoptic, and back.

    from pansight.data.convert import convert
    print(convert("export.zip", "mydata", things=["car", "person"]).text())

The parts are imported on first use, because readers of official layouts use functions from here, and the converters use
functions of those readers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pansight.data.convert.driver import convert, detect
    from pansight.data.convert.overlap import POLICIES
    from pansight.data.convert.readers import READERS
    from pansight.data.convert.summary import Summary
    from pansight.data.convert.targets import TARGETS

__all__ = ["POLICIES", "READERS", "TARGETS", "Summary", "convert", "detect"]

_HOME = {
    "POLICIES": "overlap",
    "READERS": "readers",
    "TARGETS": "targets",
    "Summary": "summary",
    "convert": "driver",
    "detect": "driver",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

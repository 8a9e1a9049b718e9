"""What was written for speed or memory, a topic a file. Each function has a plain twin of the same result.

A plain twin is what one would write with torch, NumPy and torchvision alone. It stands in the module whose function is
called (`ops.attention.deformable.deform_attention`, `ops.regions.roi.multilevel_roi_align` …), which takes the fast way
unless `use_plain()` says otherwise. Whoever doubts a result runs it again with PANSIGHT_PLAIN=1: if it changes by more
than rounding, the fault is in this folder.

The same result means: equal to rounding. Where a rounded value is compared with a threshold, single pixels may flip.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

PLAIN = "PANSIGHT_PLAIN"


def use_plain() -> bool:
    """Whether the plain twins are to run: the environment variable PANSIGHT_PLAIN is 1."""
    return os.environ.get(PLAIN) == "1"


@contextmanager
def plain(active: bool = True) -> Generator[None]:
    """Inside, the plain twins run (the fast functions with ``active=False``, whatever the environment says).

    It sets the environment variable and puts it back, so that it holds in all threads of the process and in the
    processes that are started inside. Two threads should not enter and leave it at the same time. A forward pass and
    its backward pass belong inside together; what torch has compiled keeps the way that it was compiled with.
    """
    before = os.environ.get(PLAIN)
    os.environ[PLAIN] = "1" if active else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PLAIN]
        else:
            os.environ[PLAIN] = before

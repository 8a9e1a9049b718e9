"""``pansight convert``: the progress bar, the question which classes are things, the summary."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from pansight.data.convert import convert
from pansight.engine.progress import Pace, ProgressBar
from pansight.errors import PansightError


def convert_command(
    source: Path,
    to: Path,
    *,
    format: str,
    target: str,
    split: str | None,
    overlap: str,
    things: tuple[str, ...] | None,
    fill: str | None,
    images: str,
    overwrite: bool,
    options: dict[str, str],
    stuff: tuple[str, ...] | None,
    strict: bool,
    jobs: int,
) -> int:
    """Convert, then print what was done. 1 where images or annotations were left out, else 0."""
    bars: list[ProgressBar] = []
    pace = Pace()
    with ExitStack() as stack:

        def show(share: float, text: str) -> None:
            if not bars:  # not before the first image: a question may come first
                bars.append(stack.enter_context(ProgressBar("convert")))
            bars[0].update(share, f"{text}, {pace.after_one()}")

        summary = convert(
            source,
            to,
            format,
            target,
            split,
            overlap,
            things,
            fill,
            images,
            overwrite,
            ask=ask_things if sys.stdin.isatty() and sys.stderr.isatty() else None,
            progress=show,
            options=options,
            stuff=stuff,
            strict=strict,
            jobs=jobs,
        )
    print(summary.text())
    return 1 if summary.left_out else 0


def ask_things(names: Sequence[str]) -> Iterable[str]:
    """The user's answer, on the terminal, for the classes that the source leaves open."""
    print("Which of these classes are things (objects that are counted)? The others are stuff.", file=sys.stderr)
    print("  " + ", ".join(names), file=sys.stderr)
    print("Names with commas between them, or all, or none: ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip()
    if not answer:
        raise PansightError(
            f"expected names among {', '.join(names)}, or all, or none; found no answer", where="things"
        )
    return list(names) if answer == "all" and "all" not in names else [answer]

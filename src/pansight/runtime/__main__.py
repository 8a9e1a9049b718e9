"""``python -m pansight.runtime FOLDER PHOTOS --out OUT``: panoptic maps of photos, by an exported folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .engines import ENGINES
from .errors import RuntimeFault
from .model import Model, open_model
from .values import Prediction
from .writing import write

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command → its exit code: 0, or 2 with an error in one line."""
    parser = argparse.ArgumentParser("pansight-runtime", description="Panoptic maps of photos, without torch.")
    parser.add_argument("folder", help="what `pansight export --to onnx` or `--to openvino` has written")
    parser.add_argument("photos", nargs="+", help="photos, and folders of them")
    parser.add_argument("--out", required=True, help="a new folder: panoptic.json, and a PNG for each photo")
    parser.add_argument("--engine", default="auto", choices=("auto", *ENGINES))
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0: as many as the engine likes")
    given = parser.parse_args(arguments)
    try:
        files = found_photos(given.photos)
        model = open_model(given.folder, given.engine, given.threads)
        table = write(given.out, _predictions(model, files), model.labels)
    except RuntimeFault as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{table}: {len(files)} photos")
    return 0


def _predictions(model: Model, files: Sequence[Path]) -> Iterator[tuple[str, Prediction]]:
    for file in files:
        yield file.stem, model.predict(file)


def found_photos(given: Sequence[str]) -> list[Path]:
    """The files named, and the photos of the folders named, by name. Raises RuntimeFault where there is none."""
    files: list[Path] = []
    for each in map(Path, given):
        inside = sorted(p for p in each.iterdir() if p.suffix.lower() in SUFFIXES) if each.is_dir() else [each]
        if not inside:
            raise RuntimeFault(each, "photos", "none")
        files += inside
    return files


if __name__ == "__main__":
    sys.exit(main())

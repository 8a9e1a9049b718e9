"""The seeds are the trees that the tests of readers draw."""

import sys
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
sys.path[:0] = [str(DATA), str(DATA / "convert")]

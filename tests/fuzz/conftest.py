"""The seeds are the trees that the tests of readers draw."""

import sys
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
collect_ignore = [] if sys.platform == "linux" else ["test_fuzz.py", "test_bombs.py"]  # limits and peaks of Linux
sys.path[:0] = [str(DATA), str(DATA / "convert")]

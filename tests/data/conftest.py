"""The trees of official data sets (convert/trees.py) serve every test of data."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "convert"))

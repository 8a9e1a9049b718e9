"""What every test may ask for."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data: PANSIGHT_DATA, else ../shared/data beside the repository."""
    root = Path(os.environ.get("PANSIGHT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("real data: set PANSIGHT_DATA to the folder with dsb2018, coco_tiny, coco_panoptic_sample, camvid")
    return root


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)

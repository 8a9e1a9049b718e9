"""Fixtures that every test may use, and the order of the tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# one thread in each of pytest's workers and in what they start: several of them, for tiny models, only wait
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# the same examples in every run, so that a change is what breaks a test; HYPOTHESIS_PROFILE=search looks for new ones
settings.register_profile("steady", derandomize=True)
settings.register_profile("search")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


ALONE = "test_overfit.py"
"""Each test of it takes half a minute or more: they go first, and not all to one worker."""


@pytest.hookimpl(tryfirst=True)  # before xdist writes the groups into the names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each file in one worker, for the fixtures of its module; the long tests one by one, before all others."""
    for item in items:
        if item.path.name != ALONE:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
    items.sort(key=lambda item: item.path.name != ALONE)  # stable


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data: PANSIGHT_DATA, or a default beside the repository."""
    root = Path(os.environ.get("PANSIGHT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("real data: set PANSIGHT_DATA to the folder with dsb2018, coco_tiny, coco_panoptic_sample, camvid")
    return root


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)

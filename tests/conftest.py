"""Fixtures that every test may use, and the order of the tests."""

import gc
import os
import random
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from pansight.ops.fast import plain

# one thread in each of pytest's workers and in what they start: several of them, for tiny models, only wait
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# the same examples in every run, so that a change is what breaks a test; HYPOTHESIS_PROFILE=search looks for new ones
settings.register_profile("steady", derandomize=True)
settings.register_profile("search")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.hookimpl(tryfirst=True)  # before xdist writes the groups into the names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each file in one worker, for the fixtures of its module; the slow tests before all others, one by one unless the
    whole file is slow.

    PANSIGHT_TEST_ORDER=7 puts the tests into a random order drawn from the number 7 instead, to find those that depend
    on what ran before them.
    """
    for item in items:
        if not any(mark.name == "slow" for mark in item.own_markers):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
    order = os.environ.get("PANSIGHT_TEST_ORDER")
    if order:
        random.Random(order).shuffle(items)
    else:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # stable


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: the garbage collector need not look at it again and again."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Libraries that count what is left at the end would print that all of it leaked."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data: PANSIGHT_DATA, or a default beside the repository."""
    root = Path(os.environ.get("PANSIGHT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("real data: set PANSIGHT_DATA to the folder with dsb2018, coco_tiny, coco_panoptic_sample, camvid")
    return root


@pytest.fixture(scope="module")
def chromium() -> Generator[Any]:
    """A headless browser, whose camera is a made one."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("pages in a browser: needs the program chromium on the PATH")
    api = pytest.importorskip("playwright.sync_api", reason="pages in a browser: needs the package playwright")
    with api.sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        arguments += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = play.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(params=[False, True], ids=["fast", "plain"])
def both_ways(request: pytest.FixtureRequest) -> Generator[None]:
    """The test runs twice: on the fast functions of ops/fast and on their plain twins."""
    with plain(request.param):
        yield


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)

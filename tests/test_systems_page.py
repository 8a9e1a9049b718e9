"""The table and the plot of all systems in docs/benchmarks.md, from invented rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch):
    """benchmarks/systems_page.py as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "systems_page", raising=False)
    import systems_page

    return systems_page


def row(page: Any, system: str, seed: int, pq: float | None, miou: float | None) -> dict[str, Any]:
    figures = dict.fromkeys(page.FIGURES) | {"PQ": pq, "mIoU": miou}
    costs = {"parameters": 5_190_000, "step_seconds": 0.5, "inference_ms": 40.0, "training_mib": 900.0}
    return {"data": "shapes", "system": system, "seed": seed, "figures": figures, **costs, "inference_mib": 500.0}


def test_the_best_system_stands_first_with_the_mean_over_its_seeds(page):
    rows = [row(page, "unet", 0, None, 80.0), row(page, "fpn", 0, 70.0, 60.0), row(page, "fpn", 1, 80.0, 60.0)]
    first, second = page.system_rows(rows)
    assert first == ["`fpn`", "75.0", "", "", "", "", "60.0", "", "", "5.19 M", "0.50", "40", "900", "500"]
    assert second[:2] == ["`unet`", ""]
    assert len(first) == len(page.HEADER)


def test_labels_are_spread_around_their_mean(page):
    assert page.apart([5.0, 1.0, 2.0, 1.5], 1.0, [10.0, 10.0, 11.0, 12.0]) == [5.0, 0.5, 2.5, 1.5]


def test_labels_beside_each_other_stay(page):
    assert page.apart([1.0, 1.0], 1.0, [10.0, 100.0]) == [1.0, 1.0]


def test_the_plot_has_a_point_for_each_system_with_pq(page, tmp_path):
    page.draw_systems([row(page, "unet", 0, None, 80.0), row(page, "fpn", 0, 70.0, 60.0)], tmp_path)
    text = (tmp_path / page.plot_of("shapes")).read_text()
    assert ">fpn</text>" in text
    assert "unet" not in text
    page.draw_systems([row(page, "fpn", 0, 70.0, 60.0)], tmp_path)
    assert (tmp_path / page.plot_of("shapes")).read_text() == text  # the same figures, the same file

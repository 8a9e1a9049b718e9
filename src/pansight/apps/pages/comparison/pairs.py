"""More than two evaluations as equals: the difference of every pair, and the order by the figure compared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pansight.metrics.bootstrap import Figures, adjust, bootstrap, paired_test


def all_pairs(
    figures: Sequence[Figures], names: Sequence[str], images: int, resamples: int, seed: int, confidence: float
) -> list[dict[str, Any]]:
    """The difference in the main figure of all classes, of each later evaluation to each earlier one.

    Rows: first, second (names), value, low, high, p, and p_adjusted, with the number of pairs allowed for
    (Benjamini and Hochberg); None where a figure does not exist.
    """
    rows: list[dict[str, Any]] = []
    for i, k in combinations(range(len(names)), 2):
        both = [figures[i], figures[k]]
        found = bootstrap(both, images, resamples, seed, confidence)
        p = paired_test(figures[i], figures[k], images, resamples, seed)
        values = {"value": found.difference, "low": found.difference_low, "high": found.difference_high}
        row = {key: float(table[1, 0, 0]) for key, table in values.items()} | {"p": float(p[0, 0])}
        rows.append({"first": names[i], "second": names[k], **row})
    for row, adjusted in zip(rows, adjust(np.array([row["p"] for row in rows])).tolist()):
        row["p_adjusted"] = adjusted
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]


def ranking(evaluations: Sequence[dict[str, Any]], key: str) -> list[str]:
    """The names of the evaluations, the best first by the main figure of all classes; those without one last."""
    values = {row["name"]: row["All"][key]["value"] for row in evaluations}
    return sorted(values, key=lambda name: (values[name] is None, -(values[name] or 0.0)))

"""Choose the images for validation so that every class has its share, and occurs on both sides where possible.

Iterative stratification (Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-label Data", ECML 2011), the
rarest class first, for units of one or more images; then moves and exchanges while they bring the shares nearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError

SIZE_WEIGHT = 4.0
"""How much the number of images counts beside the share of one class."""

MOVES, CANDIDATES = 1000, 100
"""Of the refinement at most: moves or exchanges, and units of each side that are tried for an exchange."""


def stratify(images: Sequence[int], classes: Sequence[dict[int, int]], fraction: float, seed: int) -> NDArray[np.bool_]:
    """bool (U,), True for validation.

    images: of each of U units. classes: of each unit {class: images of it that show the class}; classes are any ints.
    A class of two or more units is on both sides unless other classes prevent it. Both sides have a unit.
    Raises PansightError for a fraction outside (0, 1) and for fewer than two units.
    """
    if not 0 < fraction < 1:
        raise PansightError(where="split", expected="a share for validation between 0 and 1", found=fraction)
    if len(images) < 2:
        raise PansightError(where="split", expected="at least 2 images or groups", found=len(images))
    state = _State(images, classes, fraction)
    _iterate(state, np.random.default_rng(seed))
    _represent(state)
    _refine(state)
    return state.in_val


class _State:
    """Units, what is wanted, and who is where. The last column of every row stands for the images themselves."""

    def __init__(self, images: Sequence[int], classes: Sequence[dict[int, int]], fraction: float):
        from scipy import sparse  # loaded for a split alone; check shares this module's package

        index = {number: n for n, number in enumerate(sorted({c for row in classes for c in row}))}
        rows = [u for u, row in enumerate(classes) for _ in row] + list(range(len(images)))
        columns = [index[c] for row in classes for c in row] + [len(index)] * len(images)
        values = [n for row in classes for n in row.values()] + list(images)
        shape = len(images), len(index) + 1
        self.table = sparse.csr_array((np.array(values, np.float64), (rows, columns)), shape=shape)  # (U, C + 1)
        self.table.sort_indices()
        self.rows = np.repeat(np.arange(shape[0]), np.diff(self.table.indptr))  # (nnz,)
        self.squares = self.table.power(2)
        self.total = np.asarray(self.table.sum(0)).reshape(-1)  # (C + 1,)
        self.units = np.bincount(self.table.indices, minlength=shape[1])  # (C + 1,) units that have the class
        wanted = self.total * fraction
        wanted = np.where(self.units == 1, 0.0, wanted)  # what can be on one side only is learned, not measured
        floor = np.where(self.units >= 2, np.minimum(1.0, self.total / 2), 0.0)
        self.wanted = np.clip(wanted, floor, self.total - floor)
        self.weight = 1.0 / np.maximum(self.wanted, 1.0)
        self.weight[-1] *= SIZE_WEIGHT
        self.in_val = np.zeros(shape[0], bool)
        self.val = np.zeros(shape[1])  # images of each class in validation

    def row(self, unit: int) -> tuple[NDArray[np.integer[Any]], NDArray[np.float64]]:
        """(columns, values) of a unit."""
        part = slice(self.table.indptr[unit], self.table.indptr[unit + 1])
        return cast(NDArray[np.integer[Any]], self.table.indices[part]), cast(
            NDArray[np.float64], self.table.data[part]
        )

    def move(self, unit: int) -> None:
        columns, values = self.row(unit)
        self.val[columns] += -values if self.in_val[unit] else values
        self.in_val[unit] = not self.in_val[unit]

    def costs(self) -> NDArray[np.float64]:
        """float (U,): what a unit's move adds to Σ weight · (val − wanted)²; inf where its side would lose a class."""
        linear = self.table @ (2 * self.weight * (self.val - self.wanted))
        cost = np.where(self.in_val, -linear, linear) + self.squares @ self.weight
        here = np.where(
            self.in_val[self.rows], self.val[self.table.indices], (self.total - self.val)[self.table.indices]
        )
        last = (self.table.data >= here) & (self.units[self.table.indices] >= 2)
        cost[np.bincount(self.rows, last, minlength=len(cost)) > 0] = np.inf
        return cost


def _iterate(state: _State, rng: np.random.Generator) -> None:
    """Every unit to the side that lacks most of its rarest class."""
    lacks = np.stack([state.total - state.wanted, state.wanted])  # (2, C + 1): train, val
    left = state.units.copy()  # units that are not yet placed, by class
    left[-1] = np.iinfo(left.dtype).max - 1  # units without any class come last
    columns, order = state.table.tocsc(), rng.permutation(len(state.in_val))
    place = np.argsort(order)
    open_units = np.ones(len(state.in_val), bool)
    while open_units.any():
        rarest = int(np.argmin(np.where(left > 0, left, np.iinfo(left.dtype).max)))
        mine = columns.indices[columns.indptr[rarest] : columns.indptr[rarest + 1]]
        for unit in sorted(mine[open_units[mine]].tolist(), key=place.__getitem__):
            own, values = state.row(unit)
            difference = lacks[1, rarest] - lacks[0, rarest] or lacks[1, -1] - lacks[0, -1]
            to_val = difference > 0
            lacks[int(to_val), own] -= values
            left[own[:-1]] -= 1
            open_units[unit] = False
            if to_val:
                state.move(unit)
        left[rarest] = 0


def _represent(state: _State) -> None:
    """Classes that one side lacks get a unit there, the one whose move costs least, if no other class suffers."""
    for column in np.argsort(state.units, kind="stable").tolist():
        if state.units[column] < 2:
            continue
        for side in (True, False):
            there = state.val[column] if side else state.total[column] - state.val[column]
            if there > 0:
                continue
            costs = state.costs()
            has = np.zeros(len(costs), bool)
            has[state.rows[state.table.indices == column]] = True
            costs[~has] = np.inf
            best = int(np.argmin(costs))
            if np.isfinite(costs[best]):
                state.move(best)


def _refine(state: _State) -> None:
    """Single moves, then exchanges, while they bring the shares nearer."""
    for _ in range(MOVES):
        costs = state.costs()
        best = int(np.argmin(costs))
        if costs[best] < -1e-9:
            state.move(best)
            continue
        pair = _best_exchange(state, costs)
        if pair is None:
            return
        for unit in pair:
            state.move(unit)


def _best_exchange(state: _State, costs: NDArray[np.float64]) -> tuple[int, int] | None:
    """The (train, val) pair whose exchange helps most, among the CANDIDATES cheapest of each side; None: none helps.

    Σ w (x_u − x_v)² = Σ w x_u² + Σ w x_v² − 2 Σ w x_u x_v, so two single costs and a product give that of a pair.
    """
    train, val = (
        side[np.argsort(costs[side], kind="stable")[:CANDIDATES]]
        for side in (np.flatnonzero(~state.in_val), np.flatnonzero(state.in_val))
    )
    rows_train, rows_val = state.table[train].toarray(), state.table[val].toarray()  # (T, C + 1), (V, C + 1)
    both = costs[train][:, None] + costs[val][None] - 2 * (rows_train * state.weight) @ rows_val.T  # (T, V)
    place = np.unravel_index(np.argmin(both), both.shape)
    return (int(train[place[0]]), int(val[place[1]])) if both[place] < -1e-9 else None

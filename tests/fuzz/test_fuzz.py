"""Hostile and broken input for `evaluate`, `check` and `convert`: a clear error or a right result, nothing else.

250 cases in `make test-all`, 1,750 others in `make test-long`, each drawn from its own number:
PANSIGHT_FUZZ=50000 runs as many, PANSIGHT_FUZZ_CASE=123 that one and prints what it did.
What long runs found is kept in test_found.py.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from mutate import Special, Tree, mutate_tree, write_tree
from mutate_zip import mutate_zip, pack
from sandbox import Outcome, Sandbox, Watch, read_json
from seeds import Seed, all_seeds, readers_of

from pansight.data.check.defects import RULES
from pansight.data.convert import READERS, TARGETS

COUNT, BLOCK = int(os.environ.get("PANSIGHT_FUZZ", "2000")), 250
ONLY = os.environ.get("PANSIGHT_FUZZ_CASE")
SHARES = {"evaluate": 0.25, "check": 0.25, "convert": 0.5}

SOURCES = {"leak", "unreadable-image"}
"""What `convert` may leave to `check`: photos go through byte for byte, their pixels are not looked at."""


class Case(NamedTuple):
    """What is done to which seed."""

    told: str
    tree: Tree
    command: tuple[str, ...]


@pytest.fixture(scope="module")
def seeds() -> dict[str, list[Seed]]:
    """By command."""
    found = all_seeds()
    return {command: [seed for seed in found if seed.name.split()[0] == command] for command in SHARES}


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.on = False


@pytest.fixture
def sandbox(tmp_path: Path, watch: Watch) -> Sandbox:
    return Sandbox(tmp_path / "sandbox", watch)


def draw(number: int, seeds: dict[str, list[Seed]]) -> Case:
    """Case `number`: the same whatever is run before it."""
    rng = np.random.default_rng([3, number])
    command = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    seed = seeds[command][int(rng.integers(len(seeds[command])))]
    others = [_any_file(rng, seeds) for _ in range(8)]
    arguments = seed.commands[int(rng.integers(len(seed.commands)))]
    if not seed.folder or rng.random() < 0.75:
        told, tree = mutate_tree(rng, seed.files, others)
        return Case(f"{seed.name}: {told}", tree, arguments)
    return _zipped(rng, seed, others, arguments)


def _any_file(rng: np.random.Generator, seeds: dict[str, list[Seed]]) -> bytes:
    command = list(seeds)[int(rng.integers(len(seeds)))]
    files = list(seeds[command][int(rng.integers(len(seeds[command])))].files.values())
    return files[int(rng.integers(len(files)))]


def _zipped(rng: np.random.Generator, seed: Seed, others: list[bytes], arguments: tuple[str, ...]) -> Case:
    """The folder of the seed as a ZIP: either the archive is odd or what lies in it."""
    below = seed.folder.removeprefix("in").lstrip("/")
    prefix = f"{below}/" if below else ""
    inner = {name.removeprefix(prefix): data for name, data in seed.files.items() if name.startswith(prefix)}
    tree: Tree = {name: data for name, data in seed.files.items() if prefix and not name.startswith(prefix)}
    if rng.random() < 0.6:
        told, data = mutate_zip(rng, inner)
    else:
        told, changed = mutate_tree(rng, inner, others)
        plain = {name: what for name, what in changed.items() if isinstance(what, bytes)}
        data = pack(
            {name.encode("utf-8", "replace").decode(): what for name, what in plain.items()},
            ("", "export/")[int(rng.integers(2))],
        )
    tree[f"{below or 'data'}.zip"] = data
    archive = f"in/{below or 'data'}.zip"
    return Case(f"{seed.name}, zipped: {told}", tree, tuple(archive if a == seed.folder else a for a in arguments))


def run_case(case: Case, sandbox: Sandbox) -> Outcome:
    """Raises AssertionError where anything is not as it must be."""
    sandbox.clear()
    (sandbox.place / "in").mkdir()
    write_tree(sandbox.place / "in", case.tree)
    outcome = sandbox.run(*case.command)
    if outcome.code != 2:
        check_result(case.command, sandbox)
    return outcome


def check_result(command: tuple[str, ...], sandbox: Sandbox) -> None:
    """What was written is sound: fractions, and data sets in which `check` finds no error."""
    out = sandbox.place / "out"
    if command[0] == "evaluate" and (out / "record.json").exists():
        record = read_json(out / "record.json")
        for group in ("All", "Things", "Stuff"):
            assert all(0 <= record[group][figure] <= 1 for figure in ("pq", "sq", "rq")), record[group]
    if command[0] == "check" and (out / "check.json").exists():
        assert isinstance(read_json(out / "check.json"), dict)
    written = command[0] == "convert" and "--as" not in command and "none" not in command[command.index("--to") :]
    if written or "--fix" in command:
        again = sandbox.run("check", "out", "--json", "out/again.json")
        assert again.code != 2, again.stderr
        counts = read_json(out / "again.json")["counts"]
        found = {code for code in counts if RULES[code].severity == "error"}
        assert not found - (SOURCES if written else set()), f"the result has errors: {again.stdout[-600:]}"


@pytest.mark.skipif(ONLY is None, reason="one case: PANSIGHT_FUZZ_CASE=NUMBER")
def test_one_case(seeds, sandbox):
    case = draw(int(ONLY or 0), seeds)
    print(case.told, *case.command)
    print(*({n: w if isinstance(w, Special) else w[:2000] for n, w in case.tree.items()}).items(), sep="\n")
    print(run_case(case, sandbox))


BLOCKS = [
    pytest.param(start, marks=[pytest.mark.slow] if start < COUNT // 8 else [pytest.mark.slow, pytest.mark.long])
    for start in range(0, COUNT, BLOCK)
]
"""The first eighth is part of `make test-all`, the others of `make test-long`."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("start", BLOCKS)
def test_mutated_input(start, seeds, sandbox):
    failures: list[str] = []
    codes: Counter[int] = Counter()
    for number in range(start, min(start + BLOCK, COUNT)):
        case = draw(number, seeds)
        try:
            codes[run_case(case, sandbox).code] += 1
        except AssertionError as error:
            failures.append(f"PANSIGHT_FUZZ_CASE={number}: {case.told}\n  {' '.join(case.command)}\n  {error}")
    assert not failures, f"{len(failures)} of {BLOCK}:\n" + "\n\n".join(failures)
    assert codes[2] > 20, codes
    assert codes[0] > 20, codes


def test_nothing_is_left_out(seeds):
    """Every reader and target has a seed, and 2,000 cases meet every seed."""
    everything = [seed for some in seeds.values() for seed in some]
    assert readers_of(everything) == set(READERS)
    assert {f"convert --as {target}" for target in TARGETS} <= {seed.name for seed in everything}
    cases = [draw(number, seeds) for number in range(500)]
    assert {case.told.split(":")[0].removesuffix(", zipped") for case in cases} == {seed.name for seed in everything}
    assert sum("zipped" in case.told for case in cases) > 60
    assert sum(any(isinstance(what, Special) for what in case.tree.values()) for case in cases) > 10


@pytest.mark.slow
def test_sound_seeds_give_results(seeds, sandbox):
    for seed in (seed for some in seeds.values() for seed in some):
        for command in seed.commands:
            outcome = run_case(Case(seed.name, dict(seed.files), command), sandbox)
            assert outcome.code == 0, (command, outcome)

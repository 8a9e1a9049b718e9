"""The documents stay true: their figures are those of the result files, their links, paths and commands exist."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
GENERATED = re.compile(r"<!-- table:\w+ -->.*?<!-- /table -->", re.DOTALL)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch):
    """benchmarks/tables.py as a module; its neighbours are importable meanwhile."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("tables", "common", "exports_page", "system_tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import tables

    return tables


def test_generated_figures_are_those_of_the_result_files(tables) -> None:
    contents = tables.contents()
    systems = {f"docs/systems/{path.name}" for path in (ROOT / "docs" / "systems").glob("*.md")}
    figures = {"docs/benchmarks.md", "docs/tutorials/first_model.md", "docs/huge.md", "docs/export.md"}
    others = {"docs/systems/README.md", "docs/systems/merging.md"}
    assert set(contents) - {"docs/sweeps.md"} == figures | (systems - others) | {"docs/combining.md"}
    for document, parts in contents.items():
        text = (ROOT / document).read_text(encoding="utf-8")
        assert len(GENERATED.findall(text)) == len(parts) > 0, document
        assert tables.rewritten(text, parts) == text, f"{document}: stale; run `make tables`"


def test_missing_markers_are_named(tables) -> None:
    with pytest.raises(ValueError, match="table:demo"):
        tables.rewritten("no markers here", {"demo": "1.0"})
    assert tables.rewritten("a <!-- table:x -->\nold<!-- /table --> b", {"x": r"\1 new"}) == (
        "a <!-- table:x -->\n\n\\1 new\n\n<!-- /table --> b"
    )


def test_readme_is_short_and_types_no_measured_number_by_hand() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 200
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert set(re.findall(r"\d+\.\d+", text)) <= {"3.11", "2.0"}  # Python, the licence


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), f"{path.name}: no {target}"


SOURCE_PATH = re.compile(
    r"`((?:src/pansight/|tests/|benchmarks/|docs/|examples/)?[\w/]+(?:/[\w.]*)?\.(?:py|md|sh|toml)|(?:\w+/)+)`"
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_paths_in_backticks_exist(path: Path) -> None:
    """`ops/resize.py` is looked for from root and source; paths of other repositories bear no backticks."""
    homes = [ROOT, ROOT / "src" / "pansight", ROOT / "src", ROOT / "tests", ROOT / "docs"]
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in SOURCE_PATH.findall(text):
        is_example = "foo" in name or name.split("/")[0] in ("runs", "checkpoints", "predictions")
        assert is_example or any((home / name).exists() for home in homes), f"{path.name}: no {name}"


SPOKEN_OF = [
    *(ROOT / "src" / "pansight").rglob("*.*"),
    *(ROOT / "tests").rglob("*.py"),
    *(ROOT / "benchmarks").glob("*.py"),
    *(ROOT / "examples").glob("*"),
    *DOCUMENTS,
]
NOT_SHIPPED = re.compile(r"\b[Ss]pec \d\d|\bPEERS\b|\bDESIGN(?:\.md)?\b|\bSTYLE\.md|\bshared/")
IDIOMS = re.compile(r"\bby heart\b|\bmade again\b", re.IGNORECASE)


def _lines_with(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        if path.suffix in (".py", ".md", ".toml", ".j2", ".js", ".sh", ".css") and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]


def test_nothing_refers_to_a_document_that_does_not_ship() -> None:
    assert len(SPOKEN_OF) > 200
    assert _lines_with(NOT_SHIPPED, SPOKEN_OF) == []


def test_the_terms_of_the_field_are_used() -> None:
    """Memorised and checkpointed (or computed again), where clipped idioms stood once."""
    ours = [path for path in SPOKEN_OF if path.parent != ROOT / "benchmarks"]  # a key of a result file has one
    assert _lines_with(IDIOMS, ours) == []


def test_the_two_searches_find_something(tmp_path: Path) -> None:
    for line in ("see spec 07 B", "Spec 14.", "PEERS.md 5", "DESIGN: forward", "STYLE.md, rule 3", "../shared/data"):
        assert NOT_SHIPPED.search(line), line
    assert not NOT_SHIPPED.search("MaskHead.shared(features) of the inspected model")
    assert IDIOMS.search("learnt by heart")
    assert IDIOMS.search("maps are made again")


PYTHON = [path for path in SPOKEN_OF if path.suffix == ".py"]


def test_every_file_opens_with_a_sentence_that_says_what_it_is() -> None:
    """The first paragraph of its docstring: at least three words, and a full stop (or a colon) at the end."""
    poor: list[str] = []
    for path in PYTHON:
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        if len(first.split()) < 3 or not first.rstrip().endswith((".", ":")):
            poor.append(f"{path.relative_to(ROOT)}: {first!r}")
    assert len(PYTHON) > 200
    assert poor == []


def test_commands_of_the_readme_exist() -> None:
    from pansight.apps.cli import app

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?:\.venv/bin/|`)pansight (\w+)([^\n`]*)", text)
    assert len(commands) >= 12
    for command, rest in commands:
        assert command in app, command
        help_text = _help(app, command)
        for flag in re.findall(r"(--[a-z][\w.-]*)", rest.split("  #")[0]):
            assert flag in help_text, f"pansight {command} {flag}"


NAMED_BY_A_MODEL = re.compile(r"--(model\.options|evaluate\.decode|data\.options|option)\.")
"""Beginnings of flags whose ends the help cannot list: each model and each reader has its own."""


def test_commands_of_every_page_exist() -> None:
    """Those in blocks of code of docs/, with all their flags."""
    from pansight.apps.cli import app

    known: dict[str, str] = {}
    seen = 0
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL):
            for command, rest in re.findall(r"^pansight (\w+)(.*)$", block, flags=re.MULTILINE):
                assert command in app, f"{path.name}: pansight {command}"
                if command not in known:
                    known[command] = _help(app, command)
                seen += 1
                for flag in re.findall(r"(?<!\S)(--[a-z][\w.-]*)", rest.split("  #")[0]):
                    if not NAMED_BY_A_MODEL.match(flag) and not (command == "sweep" and "." in flag):
                        assert flag.replace("_", "-") in known[command], f"{path.name}: pansight {command} {flag}"
    assert seen > 60


def _help(app, command: str) -> str:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    app.help_print([command], console=console)
    return console.file.getvalue()


def test_the_way_of_one_image_stays_short() -> None:
    """At most nine files and six structures from the disk to the metric, as docs/architecture.md counts them."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| `([\w/.]+)` \| .* \|(.*)\|$", text, flags=re.MULTILINE)
    assert 5 < len(rows) <= 9
    structures = {name for _, after in rows for name in re.findall(r"`([A-Z]\w+)`", after)}
    assert 4 < len(structures) <= 6


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {word for words in re.findall(r"\bmake ((?:[a-z-]+ ?)+)", text) for word in words.split()[:1]}
    assert named >= {"install", "demo", "test", "check"}
    assert named <= targets

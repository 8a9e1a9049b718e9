"""The rules of docs/architecture.md, enforced by reading the source: imports point one way, files stay readable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "pansight"
FILES = sorted(SOURCE.rglob("*.py"))

BASE = {"types", "errors", "files", "archives", "parallel"}
SPINE = BASE | {"ops", "nn", "models"}
ALLOWED = {
    "types": {"errors"},
    "errors": set[str](),
    "files": {"errors"},
    "archives": {"errors"},
    "parallel": {"errors"},
    "ops": BASE,
    "nn": BASE | {"ops"},
    "models": BASE | {"ops", "nn"},
    "data": BASE | {"ops"},
    "metrics": BASE | {"ops"},
    "weights": SPINE | {"data"},
    "config": BASE,
    "drawing": BASE | {"ops"},
    "interop": BASE | {"ops", "data", "drawing"},
    "engine": SPINE | {"data", "metrics", "weights", "config", "drawing", "interop"},
    "integrations": BASE | {"engine", "interop"},
    "apps": SPINE | {"data", "metrics", "weights", "config", "drawing", "interop", "engine"},
    "runtime": set[str](),
}
"""What a part may import besides itself."""


def part_of(module: str) -> str | None:
    """pansight.ops.regions.boxes → ops; pansight itself → "" ; foreign modules → None."""
    names = module.split(".")
    if names[0] != "pansight":
        return None
    return names[1] if len(names) > 1 else ""


def module_of(path: Path) -> str:
    names = ["pansight", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> list[tuple[int, str, bool]]:
    """(line, absolute module, is lazy) of every import; ``from pansight import ops`` counts as pansight.ops."""
    return list(_imports_of(path))


def _imports_of(path: Path) -> Iterator[tuple[int, str, bool]]:
    tree = tree_of(path)
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(outer, ast.If) and ast.unparse(outer.test) == "TYPE_CHECKING")  # never run
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, id(node) in lazy
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = module_of(path).split(".")
                keep = len(parents) - node.level + (path.name == "__init__.py")
                module = ".".join([*parents[:keep], *([module] if module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}", id(node) in lazy


def test_there_is_something_to_check() -> None:
    assert len(FILES) >= 12
    assert {part_of(module_of(f)) for f in FILES} >= {"types", "ops", "nn", "models", "weights", "data", "metrics"}


def test_imports_point_one_way() -> None:
    for path in FILES:
        part = part_of(module_of(path))
        if part in ("", "__main__"):
            continue  # the public face and the entry point may import anything; how, is tested below
        assert part in ALLOWED, f"{path}: a part that ALLOWED does not know"
        for line, module, _ in imports_of(path):
            target = part_of(module)
            assert target is None or target == part or target in ALLOWED[part], (
                f"{path.relative_to(SOURCE)}:{line}: {part} imports {module}; it may import {sorted(ALLOWED[part])}"
            )


def test_imports_of_finds_every_form(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("import torch\nfrom pansight import ops\ndef f():\n    from pansight.apps.cli import main\n")
    assert list(imports_of(path)) == [
        (1, "torch", False),
        (2, "pansight.ops", False),
        (4, "pansight.apps.cli.main", True),
    ]
    assert [part_of(m) for _, m, _ in imports_of(path)] == [None, "ops", "apps"]


def test_only_the_public_face_and_entry_points_import_apps() -> None:
    for path in FILES:
        part = part_of(module_of(path))
        for line, module, is_lazy in imports_of(path):
            if part_of(module) == "apps" and part != "apps":
                assert part in ("", "__main__"), f"{path}:{line}: imports {module}"
                assert is_lazy or part == "__main__", f"{path}:{line}: expected {module} inside a function"


SHARED_BY_MODELS = ("__init__.py", "contract.py", "options.py")
MODEL_FILES = [p for p in sorted((SOURCE / "models").rglob("*.py")) if p.name not in SHARED_BY_MODELS]


def test_models_never_import_each_other() -> None:
    """They share the contract, the kinds of options, and what is in nn and ops."""
    for path in MODEL_FILES:
        for line, module, _ in imports_of(path):
            shared = ("pansight.models.contract.", "pansight.models.options.")
            allowed = module.startswith(shared) or not module.startswith("pansight.models")
            assert allowed, f"{path}:{line}: a model imports {module}"


def test_nobody_else_imports_a_model_file() -> None:
    """What others want of a model stands in its entry."""
    of_models = {module_of(path) for path in MODEL_FILES}
    for path in FILES:
        for line, module, _ in imports_of(path):
            told = module in of_models or module.rpartition(".")[0] in of_models
            assert not told or path == SOURCE / "models" / "__init__.py", f"{path}:{line}: imports {module}"


def test_a_model_is_one_file_and_one_line() -> None:
    """Every model file ends with a literal table ENTRIES, and MODELS is nothing but these tables."""
    tree = tree_of(SOURCE / "models" / "__init__.py")
    (table,) = [
        node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MODELS"
    ]
    assert isinstance(table, ast.Dict)
    assert table.keys == [None] * len(MODEL_FILES)  # ** alone
    assert sorted(map(ast.unparse, table.values)) == sorted(f"{path.stem}.ENTRIES" for path in MODEL_FILES)
    lines = [value.lineno for value in table.values]
    assert len(set(lines)) == len(lines)
    for path in MODEL_FILES:
        last = tree_of(path).body[-1]
        assert isinstance(last, ast.AnnAssign), path
        assert ast.unparse(last.target) == "ENTRIES", path
        assert ast.unparse(last.annotation) == "dict[str, Entry]", path  # which pyright holds the builders to
        assert isinstance(last.value, ast.Dict), path


def test_no_star_imports() -> None:
    for path in FILES:
        for line, module, _ in imports_of(path):
            assert not module.endswith(".*"), f"{path}:{line}: import *"


def test_files_and_functions_stay_short() -> None:
    for path in FILES:
        length = len(path.read_text(encoding="utf-8").splitlines())
        assert length <= 500, f"{path}: {length} lines; split it by what it is about"
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= 70, f"{path}:{node.lineno}: {node.name} has {lines} lines"


def test_folders_stay_small() -> None:
    """Those of recipes aside, which have a file for each system and nothing that must be understood together."""
    for folder in [SOURCE, *(p for p in SOURCE.rglob("*") if p.is_dir() and p.name != "__pycache__")]:
        entries = [p.name for p in folder.iterdir() if p.name != "__pycache__"]
        if folder.parent == SOURCE / "recipes":
            continue
        limit = 21 if folder == SOURCE else 13
        assert len(entries) <= limit, f"{folder}: {len(entries)} entries: {sorted(entries)}"


def test_no_hasattr_exec_eval() -> None:
    """hasattr hides that a contract is missing; exec and eval hide code."""
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("hasattr", "exec", "eval"), f"{path}:{node.lineno}: {node.func.id}"

"""What mkdocs runs while it builds: the reference gets the public names that none of its pages places."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLACED = re.compile(r"^::: pansight\.(\w+)$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Adds to reference/commands.md what `pansight.__all__` has and no page of the reference names."""
    if page.file.src_uri != "reference/commands.md":
        return markdown
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    left = sorted(set(public_names()) - set(PLACED.findall(pages)))
    return markdown + "".join(f"\n\n::: pansight.{name}" for name in left)


def public_names() -> list[str]:
    """`pansight.__all__`, read without importing it."""
    tree = ast.parse((ROOT / "src" / "pansight" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    raise ValueError("expected __all__ in src/pansight/__init__.py")

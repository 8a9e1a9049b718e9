"""The documentation as a site: it builds without a warning, lists every page, and loads nothing from elsewhere."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


def navigation() -> Any:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]


def pages_of(nav: Any) -> Iterator[str]:
    """The paths in a `nav`: texts, or titles before a path or a list."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(part)


def test_the_navigation_lists_every_page_once() -> None:
    listed = list(pages_of(navigation()))
    assert len(listed) == len(set(listed)) > 30
    assert set(listed) == PAGES


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_has_one_title_and_lists_that_are_lists(page: str) -> None:
    """GitHub takes a list right below a paragraph for a list, and the site does not."""
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(re.findall(r"^# ", text, flags=re.MULTILINE)) == 1
    lines = text.splitlines()
    glued = [
        line
        for before, line in itertools.pairwise(lines)
        if re.match(r"(?:-|\d+\.) ", line) and before.strip() and not re.match(r"\s|(?:-|\d+\.) ", before)
    ]
    assert glued == []


LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//"""
    r"""|<link[^>]*\srel=["']?(?:stylesheet|preconnect|preload|icon)["']?[^>]*\shref=["']?(?:https?:)?//"""
    r"""|<link[^>]*\shref=["']?(?:https?:)?//[^>]*\srel=["']?(?:stylesheet|preconnect|preload|icon)"""
    r"""|@import\s+url|url\(["']?(?:https?:)?//"""
)
"""What a browser would fetch from another host by itself; links that a reader may follow are none of it."""


def test_what_is_loaded_from_elsewhere_is_found() -> None:
    for text in (
        '<script src="https://a.b/c.js">',
        "<link rel=stylesheet href=//a.b/c.css>",
        '<link href="https://a.b" rel="preconnect">',
        "src: url(https://a.b/c.woff2)",
    ):
        assert LOADED.search(text), text
    assert not LOADED.search('<a href="https://a.b">x</a> <link rel="stylesheet" href="site.css">')


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            told, _ = process.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, told
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) == len(PAGES) + 1  # and 404.html
    for path in (*built, *(tmp_path / "site").rglob("*.css")):
        found = LOADED.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name}: {found and found[0]}"
    import pansight

    reference = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site" / "reference").glob("*.html"))
    assert [name for name in pansight.__all__ if f'id="pansight.{name}"' not in reference] == []

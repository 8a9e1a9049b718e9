"""Errors: one line from parts, parts that survive any border, and nobody who searches the line."""

from __future__ import annotations

import ast
import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from pansight.errors import Code, PansightError, choice_error, shown

SOURCE = Path(__file__).parents[1] / "src" / "pansight"
FILES = sorted(SOURCE.rglob("*.py"))

PARTS = ("message", "where", "expected", "found", "reason", "hint", "code")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PansightError("no image fits"), "no image fits"),
        (PansightError(where=Path("a/b.json"), expected="JSON", found="TOML"), "a/b.json: expected JSON, found TOML"),
        (PansightError(where="count", expected=1, found=None), "count: expected 1, found None"),
        (PansightError(expected="a mask", found=""), "expected a mask, found "),
        (
            PansightError(where="out", expected="no file yet", found="one", hint="add --overwrite"),
            "out: expected no file yet, found one; add --overwrite",
        ),
        (PansightError(where="a.png", expected="a PNG", reason="bad CRC"), "a.png: expected a PNG, found: bad CRC"),
        (PansightError("cannot be read", where="a", reason=OSError("gone")), "a: cannot be read: gone"),
        (PansightError("unknown key", where="train", hint="known: steps"), "train: unknown key; known: steps"),
        (choice_error("model", "yolo", {"detr": 1, "eomt": 2}), "unknown model 'yolo'; known: detr, eomt"),
    ],
)
def test_the_line(error, line):
    assert str(error) == f"{error}" == line
    assert error.what == line.removeprefix(f"{error.where}: ")


def test_parts_are_texts_and_come_back_from_another_process():
    error = PansightError(where=Path("a"), expected=3, found=[4], hint="count again", code="wrong_format")
    assert (error.where, error.expected, error.found, error.message, error.reason) == ("a", "3", "[4]", "", "")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is PansightError
        assert str(other) == str(error)
        assert [getattr(other, name) for name in PARTS] == [getattr(error, name) for name in PARTS]


def test_a_wider_place_and_another_name():
    error = PansightError(where="segment 3", expected="a class of /a/b/y.json", found="none", code="unlisted_category")
    wider = error.at("image 7").at(Path("/a/b/a.json"))
    assert str(wider) == "/a/b/a.json: image 7: segment 3: expected a class of /a/b/y.json, found none"
    assert wider.code == "unlisted_category"
    assert str(PansightError("no image fits").at("train")) == "train: no image fits"
    renamed = wider.renamed(Path("/a/b"), "data.zip")
    assert str(renamed) == "data.zip/a.json: image 7: segment 3: expected a class of data.zip/y.json, found none"
    assert (renamed.expected, renamed.code) == ("a class of data.zip/y.json", "unlisted_category")
    assert error.where == "segment 3"


# --- the source ------------------------------------------------------------------------------------------------------


def searches(tree: ast.AST) -> Iterator[int]:
    """The lines where the text of a caught or given PansightError is read to find something in it.

    Its text may be printed, handed on or put into another text, and nothing else.
    """
    for scope, name in caught(tree):
        parents = {child: node for node in ast.walk(scope) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(scope):
            is_text = isinstance(node, ast.Call) and ast.unparse(node) in (f"str({name})", f"repr({name})")
            is_quoted = isinstance(node, ast.JoinedStr) and f"{{{name}}}" in ast.unparse(node)
            if (
                (is_text and not is_handed_on(parents[node]))
                or (is_quoted and isinstance(parents[node], ast.Attribute | ast.Compare))
                or (isinstance(node, ast.Attribute) and ast.unparse(node) == f"{name}.args")
            ):
                yield node.lineno


def is_handed_on(parent: ast.AST) -> bool:
    if isinstance(parent, ast.Call):
        return not ast.unparse(parent.func).startswith("re.")
    return isinstance(parent, ast.FormattedValue)


def caught(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """(the part of the source where it is known, its name) of every PansightError."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is not None and node.name is not None:
            if "PansightError" in ast.unparse(node.type):
                yield node, node.name
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                if argument.annotation is not None and "PansightError" in ast.unparse(argument.annotation):
                    yield node, argument.arg


def test_nobody_searches_the_line_of_an_error():
    """Whoever decides by an error reads its code and its parts; sentences may then be improved without breaking it."""
    for path in FILES:
        found = list(searches(ast.parse(path.read_text(encoding="utf-8"))))
        assert not found, f"{path.relative_to(SOURCE)}:{found}: read the error's parts, not its line"


@pytest.mark.parametrize(
    "use",
    [
        "'expected' in str(e)",
        "str(e).startswith('a')",
        "re.search('x', str(e))",
        "e.args[0]",
        "text = str(e)",
        "f'{e}'.partition(', found ')",
        "'JSON' not in f'{e}'",
    ],
)
def test_a_search_is_noticed(use):
    source = f"try:\n    f()\nexcept (PansightError, OSError) as e:\n    {use}\n"
    assert list(searches(ast.parse(source))) == [4]
    assert list(searches(ast.parse(f"def said(e: PansightError):\n    {use}\n"))) == [2]
    assert not list(searches(ast.parse(source.replace("PansightError", "KeyError"))))
    for fine in (
        "complain(str(e), 2)",
        "raise PansightError(f'{e}') from e",
        "raise e.at(f'image {number}')",
        "e.code",
    ):
        assert not list(searches(ast.parse(source.replace(use, fine))))


def raised() -> Iterator[tuple[str, ast.Call]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "PansightError":
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", node


def test_every_error_is_said_in_parts():
    calls = list(raised())
    assert len(calls) > 500
    for place, call in calls:
        given = {keyword.arg for keyword in call.keywords}
        if not call.args:
            assert "expected" in given, f"{place}: expected a message, or expected and found"
            assert given & {"found", "reason"}, f"{place}: expected what was found"
            continue
        assert not given & {"expected", "found"}, f"{place}: expected either a message or expected and found"
        told = re.search(r"\bexpected .*, found |^f?.\{[\w.]+\}: ", ast.unparse(call.args[0]))
        assert told is None, f"{place}: expected where, expected and found apart, found {told[0]!r} in one text"


def test_every_code_is_used():
    used = {
        keyword.value.value
        for _, call in raised()
        for keyword in call.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant)
    }
    assert used | {"unexpected"} == set(get_args(Code))


# --- what is shown of what files hold --------------------------------------------------------------------------------

SPOILT = {
    "a line break": ("a\nb", "a\\nb"),
    "a return": ("a\rb", "a\\rb"),
    "a colour": ("\x1b[31mred", "\\x1b[31mred"),
    "C1": ("\x9b31m", "\\x9b31m"),
    "the other direction": ("a\u202egpj", "a\\u202egpj"),
    "an isolate": ("a\u2066b", "a\\u2066b"),
    "no width": ("a\u200bb", "a\\u200bb"),
    "a line of Unicode": ("a\u2028b", "a\\u2028b"),
    "half a letter": ("a\udc80", "a\\udc80"),
    "a zero": ("a\0b", "a\\x00b"),
    "an accent": ("Straße, 道路　駅", "Straße, 道路　駅"),
    "a blank that keeps together": ("a\xa0b", "a\xa0b"),
    "a backslash": ("a\\nb", "a\\nb"),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("part", ["message", "where", "expected", "found", "reason", "hint"])
def test_letters_that_spoil_a_terminal_are_escaped(part, kind):
    given, seen = SPOILT[kind]
    parts = {"expected": "x", "found": "y"} if part in ("where", "expected", "found") else {"message": "z"}
    error = PansightError(**parts | {part: given})
    assert seen in str(error)
    assert given == seen or given not in str(error)
    assert getattr(error, part) == given  # whoever handles it has the whole


@pytest.mark.parametrize("part", ["where", "expected", "found", "reason", "hint"])
@pytest.mark.parametrize("letter", ["a", "\x1b", "駅"])
def test_a_million_letters_are_cut(part, letter):
    parts = {"expected": "x", "found": "y"} | {part: "begin " + letter * 10**6 + " end"}
    line = str(PansightError(**parts))
    assert len(line) < 1700
    assert "begin " in line
    assert line.count(" end") == 1
    assert "letters" in line


def test_a_text_of_usual_length_is_whole():
    path = "/".join(["folder"] * 60) + "/photo.png"
    assert path in str(PansightError("cannot be read", where=path))
    assert shown("a" * 500) == "a" * 500
    assert shown("abc" * 10, 9) == "abcabc … 21 letters … abc"


def test_what_was_shown_is_shown_unchanged():
    line = str(PansightError("no\n image", where="\x1b[1m"))
    assert str(PansightError(line)) == line

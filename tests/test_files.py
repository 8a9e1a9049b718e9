"""Writing: whole or not at all, a file, a folder or several together; JSON is read back as it was."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pansight.errors import PansightError
from pansight.files import (
    Publication,
    clear_leftovers,
    decode_json,
    listed,
    read_json,
    read_text,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))


@given(VALUES)
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_rows_and_columns_stand_on_one_line(tmp_path):
    write_json(tmp_path / "a.json", {"All": {"pq": 0.5, "n": 2}, "columns": {"tp": [1, 2, 3], "fp": []}, "name": "x"})
    assert (tmp_path / "a.json").read_text() == (
        '{\n "All": {"pq": 0.5, "n": 2},\n "columns": {\n  "tp": [1, 2, 3],\n  "fp": []\n },\n "name": "x"\n}\n'
    )


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": [float("nan")]})
    assert read_json(tmp_path / "a.json") == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", "\ufeff{", "nul", ""])
def test_what_is_no_json_is_told_in_one_line(tmp_path, text):
    write_text(tmp_path / "a.json", text)
    with pytest.raises(PansightError, match=r"a.json: expected JSON") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


class Row(msgspec.Struct):
    """Of the test's JSON, what a reader asks for."""

    rows: list[int]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", [object, Row])
def test_json_of_any_unicode_encoding(encoding, kind):
    content = decode_json('{"rows": [1, 2], "name": "größe"}'.encode(encoding), kind, "a.json")
    assert content == ({"rows": [1, 2], "name": "größe"} if kind is object else Row([1, 2]))


@pytest.mark.parametrize("kind", [object, Row])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found an empty file"),
        (b'{"rows": [1],\n "area": NaN}', "found NaN as 'area' at line 2, column 10, which JSON does not have"),
        (b'{"rows": [1], "name": "NaN\\"", "x": -Infinity}', "found -Infinity as 'x' at line 1"),
        (b'{"rows": [1],\n"b": "x', r"found an early end in line 2 \(cut off\?\)"),
        (b'{"rows": [1', r"found an early end in line 1 \(cut off\?\)"),
        (b'{"rows": [1]\n "b": 2}', "found Expecting ',' delimiter at line 2, column 2"),
        (b'{"rows": [1], "rows": [2]}', "expected each key of an object once, found 'rows' twice"),
        (b"\xff\xfe\x00\xd8", "found damaged UTF-16 text"),
        (b'{"rows": [' + b"9" * 5000 + b"]}", "a.json: expected"),
    ],
)
def test_what_is_wrong_with_a_json_and_where(data, message, kind):
    with pytest.raises(PansightError, match=message) as caught:
        decode_json(data, kind, "a.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_bytes_that_are_no_text_and_nested_lists_are_told():
    for data, message in (
        (b'{"a":\n"\xe4"}', "the byte 0xe4 at line 2, column 2"),
        (b"[" * 100_000, "hundreds of lists"),
    ):
        with pytest.raises(PansightError, match=message):
            decode_json(data, object, "a.json")


def test_lines_of_text_in_utf_16(tmp_path):
    (tmp_path / "a.txt").write_bytes("ä\nb".encode("utf-16"))
    assert read_text(tmp_path / "a.txt", "names") == "ä\nb"
    (tmp_path / "a.txt").write_bytes(b"\xe4")
    with pytest.raises(PansightError, match=r"a\.txt: expected text in UTF-8 \(names\), found other bytes"):
        read_text(tmp_path / "a.txt", "names")
    with pytest.raises(PansightError, match=r"b\.txt: expected names, found no such file"):
        read_text(tmp_path / "b.txt", "names")


# --- a folder, or several files and folders together -----------------------------------------------------------------


def published(pairs: dict[Path, str | None]) -> None:
    """A place → the text of a file; of a folder (a name without a dot), that of the only file in it; None: nothing."""
    publication = Publication(*pairs)
    publication.begin()
    try:
        for (place, text), temporary in zip(pairs.items(), publication.temporaries, strict=True):
            if text is not None and place.suffix:
                temporary.write_text(text)
            elif text is not None:
                temporary.mkdir()
                (temporary / "a").write_text(text)
        publication.publish()
    finally:
        publication.discard()


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_and_a_file_appear_together_and_a_smaller_set_replaces_a_larger(tmp_path):
    folder, file = tmp_path / "deep" / "page_files", tmp_path / "deep" / "page.html"
    published({folder: "1", file: "one"})
    assert content(tmp_path / "deep") == {"page.html": "one", "page_files/a": "1"}
    published({folder: "2", file: "two"})
    assert content(tmp_path / "deep") == {"page.html": "two", "page_files/a": "2"}
    published({folder: None, file: "three"})
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["page.html"]
    assert content(tmp_path / "deep") == {"page.html": "three"}


@pytest.mark.parametrize("failing", ["rename", "replace"])
@pytest.mark.parametrize("standing", [True, False])
def test_what_stood_there_comes_back_where_one_of_several_cannot_be_placed(tmp_path, monkeypatch, failing, standing):
    """rename: the second folder finds no room; replace: both folders stand already, and the file does not fit."""
    one, two, file = tmp_path / "one", tmp_path / "two", tmp_path / "file.json"
    if standing:
        published({one: "1", two: "1", file: "1"})
    before = content(tmp_path)
    move = getattr(Path, failing)

    def full_disk(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp") and target in (two, file):
            raise OSError(28, "No space left on device")
        return move(self, target)

    monkeypatch.setattr(Path, failing, full_disk)
    with pytest.raises(PansightError, match=r"one: cannot be written: No space left on device$"):
        published({one: "2", two: "2", file: "2"})
    assert content(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == (["file.json", "one", "two"] if standing else [])


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    published({tmp_path / "one": "1"})
    (tmp_path / "b.json").mkdir()
    (tmp_path / "b.json" / "thesis").write_text("mine")
    with pytest.raises(PansightError, match="one: cannot be written: Is a directory"):
        published({tmp_path / "one": "2", tmp_path / "b.json": "2"})
    assert content(tmp_path) == {"b.json/thesis": "mine", "one/a": "1"}


def test_where_nothing_was_made_nothing_goes(tmp_path):
    published({tmp_path / "one": "1"})
    with pytest.raises(PansightError, match="one: cannot be written: No such file"):
        published({tmp_path / "one": None})
    with pytest.raises(PansightError, match=r"b\.json: cannot be written"), replacing(tmp_path / "b.json"):
        pass
    assert content(tmp_path) == {"one/a": "1"}


def left_by_a_killed_process(folder, name: str, changed: float):
    """What a Publication of `name` leaves half written, last changed at the given time."""
    publication = Publication(folder / name)
    (left,) = publication.temporaries
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    for path in (left / "half", left):
        os.utime(path, (changed, changed))
    return left


def test_temporary_names_never_recur(tmp_path):
    """In a container every run has the same few process numbers."""
    names = {name for _ in range(20) for name in Publication(tmp_path / "last").temporaries}
    assert len(names) == 20


def test_what_a_killed_process_left_is_no_obstacle_and_goes_after_a_day(tmp_path):
    now = time.time()
    old, young = left_by_a_killed_process(tmp_path, "last", 0.0), left_by_a_killed_process(tmp_path, "last", now)
    other = left_by_a_killed_process(tmp_path, "lasting", 0.0)
    with replacing_folder(tmp_path / "last") as temporary:
        (temporary / "whole").write_text("y")
    assert (tmp_path / "last" / "whole").read_text() == "y"
    assert not old.exists()
    assert young.exists()  # somebody may be writing it
    assert other.exists()  # of another place


def test_leftovers_are_cleared_at_every_depth(tmp_path):
    left = [left_by_a_killed_process(tmp_path / place, "last", time.time()) for place in ("run", "run/checkpoints")]
    (tmp_path / "run" / "mine.tmp").write_text("x")
    clear_leftovers(tmp_path / "run")
    assert not any(path.exists() for path in left)
    assert (tmp_path / "run" / "mine.tmp").exists()


def test_a_link_to_a_folder_is_replaced_and_its_target_left_alone(tmp_path):
    published({tmp_path / "mine": "1"})
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    published({tmp_path / "link": "2"})
    assert content(tmp_path) == {"link/a": "2", "mine/a": "1"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "mine"]


@pytest.mark.parametrize("spelling", ["a,b", "[a, b]", '["a", "b"]', " a , b,", ["a", "b"], ["a,b"], ("a", "b")])
def test_a_list_has_one_syntax(spelling: object) -> None:
    assert listed(spelling) == ["a", "b"]
    assert listed("wall, brick", ["wall, brick"]) == ["wall, brick"]
    assert (listed(""), listed("[]"), listed(3)) == ([], [], [3])

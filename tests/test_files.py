"""Writing JSON: whole or not at all, and read back as it was."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pansight.errors import PansightError
from pansight.files import read_json, write_json, write_text

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


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", "\ufeff{}", "nul"])
def test_what_is_no_json_is_told_in_one_line(tmp_path, text):
    write_text(tmp_path / "a.json", text)
    with pytest.raises(PansightError, match=r"a.json: expected JSON") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)

"""Archives are unpacked with limits, and nothing is left behind."""

from __future__ import annotations

import random
import stat
import tempfile
import zipfile
from pathlib import Path

import pytest

from pansight import archives
from pansight.archives import unpacked
from pansight.errors import PansightError


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Where archives are unpacked: empty before and after each test."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def archive(path: Path, content: dict[str, bytes], **how) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in content.items():
            zipped.writestr(name, data, **how)
    return path


def test_folders_and_plain_files_are_yielded_as_they_are(tmp_path):
    with unpacked(tmp_path) as root:
        assert root == tmp_path
    (tmp_path / "a.json").write_text("{}")
    with unpacked(tmp_path / "a.json") as root:
        assert root == tmp_path / "a.json"
    with pytest.raises(PansightError, match="expected a folder or file, found none"), unpacked(tmp_path / "b"):
        pass


def test_content_is_there_in_the_block_and_gone_after_it(tmp_path, temporary):
    path = archive(tmp_path / "a.zip", {"annotations.xml": b"<a/>", "images/1.jpg": b"\xff\xd8", "images/empty/": b""})
    with unpacked(path) as root:
        assert (root / "annotations.xml").read_bytes() == b"<a/>"
        assert (root / "images" / "1.jpg").read_bytes() == b"\xff\xd8"
        assert (root / "images" / "empty").is_dir()
        assert root.is_relative_to(temporary)
    assert not list(temporary.iterdir())


def test_a_single_folder_is_entered(tmp_path):
    path = archive(tmp_path / "a.zip", {"export/data.yaml": b"", "__MACOSX/._data.yaml": b""})
    with unpacked(path) as root:
        assert [entry.name for entry in root.iterdir()] == ["data.yaml"]


def test_errors_speak_of_the_archive_and_nothing_stays(tmp_path, temporary):
    path = archive(tmp_path / "a.zip", {"x.json": b"", "y.json": b""})
    with pytest.raises(PansightError) as caught, unpacked(path) as root:
        raise PansightError(where=root / "x.json", expected=f"what {root / 'y.json'} lists", found="more")
    assert str(caught.value) == f"{path}/x.json: expected what {path}/y.json lists, found more"
    assert caught.value.where == f"{path}/x.json"
    with pytest.raises(KeyError), unpacked(path):
        raise KeyError
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:/evil", "a\\..\\evil", "\\\\host\\evil"])
def test_names_that_lead_outside_are_refused(tmp_path, temporary, name):
    path = archive(tmp_path / "a.zip", {"fine.txt": b"", name: b"x"})
    with pytest.raises(PansightError, match=r"a\.zip: expected names inside the archive's folder"), unpacked(path):
        pass
    assert not list(temporary.iterdir())
    assert not list(tmp_path.rglob("*evil*"))


def test_links_are_refused(tmp_path):
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr(entry, "/etc")
    with pytest.raises(PansightError, match="expected files and folders only, found a link"):
        unpacked(tmp_path / "a.zip").__enter__()


def test_encrypted_repeated_and_conflicting_entries_are_refused(tmp_path):
    path = archive(tmp_path / "a.zip", {"a": b"x"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(PansightError, match="expected an archive without a password"), unpacked(path):
        pass
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            zipped.writestr("a", "2")
    with pytest.raises(PansightError, match="expected each file once, found 'a' twice"), unpacked(path):
        pass
    archive(path, {"a": b"", "a/b": b""})
    with pytest.raises(PansightError, match="cannot be unpacked"), unpacked(path):
        pass


def test_bombs_are_refused_before_a_byte_is_written(tmp_path, temporary, monkeypatch):
    path = archive(tmp_path / "a.zip", {"zeros": bytes(4 * 2**20)})
    with unpacked(path) as root:  # tight, but small
        assert (root / "zeros").stat().st_size == 4 * 2**20
    monkeypatch.setattr(archives, "RATIO_FROM", 2**20)
    with pytest.raises(PansightError, match=r"expected an archive of data, found 0\.0 GiB out of 0\.0 MiB"):
        unpacked(path).__enter__()
    monkeypatch.setattr(archives, "RATIO_FROM", 2**30)
    monkeypatch.setattr(archives, "MAX_UNPACKED", 2**20)
    with pytest.raises(PansightError, match="expected an archive of data"):
        unpacked(path).__enter__()
    monkeypatch.setattr(archives, "MAX_ENTRIES", 0)
    with pytest.raises(PansightError, match="expected at most 0 files"):
        unpacked(path).__enter__()
    assert not list(temporary.iterdir())


def test_an_entry_that_lies_about_its_size_is_cut_off(tmp_path, temporary):
    path = archive(tmp_path / "a.zip", {"zeros": bytes(2**20)})
    data = bytearray(path.read_bytes())
    for start, offset in ((0, 22), (data.index(b"PK\1\2"), 24)):
        data[start + offset : start + offset + 4] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(PansightError, match="expected a whole ZIP archive"), unpacked(path):
        pass
    assert not list(temporary.iterdir())


def test_a_full_disk_is_told_before(tmp_path, monkeypatch):
    path = archive(tmp_path / "a.zip", {"a": bytes(1000)})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 999}))
    with pytest.raises(PansightError, match="free space to unpack"), unpacked(path):
        pass


def test_damaged_archives_give_one_line(tmp_path, temporary):
    whole = archive(tmp_path / "whole.zip", {"a.json": b'{"a": 1}' * 50, "b/c.png": random.Random(1).randbytes(300)})
    path = tmp_path / "a.zip"
    for what in (b"", b"PK", whole.read_bytes()[:-30]):
        path.write_bytes(what)
        with pytest.raises(PansightError, match=r"a\.zip: expected a whole ZIP archive"), unpacked(path):
            pass
    draw = random.Random(0)
    for _ in range(400):
        data = bytearray(whole.read_bytes())
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        message = ""
        try:
            with unpacked(path) as root:
                assert root.is_relative_to(temporary)
        except PansightError as error:
            message = str(error)
        assert "\n" not in message
        assert not message or message.startswith(str(path))
        assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    "names",
    [
        ["export\\data.yaml", "export\\images\\1.jpg"],
        ["export/data.yaml", "README.md", "LICENSE", "README.dataset.txt"],
        ["export/data.yaml", "__MACOSX/export/._data.yaml", ".DS_Store", "export/Thumbs.db", "export/._x"],
        ["download/export/data.yaml", "download/readme.txt"],
        ["a/b/c/export/data.yaml"],
        ["data.yaml", "images/1.jpg"],
        ["export/", "export/data.yaml"],
        ["export\\", "export\\data.yaml"],
    ],
)
def test_the_folder_of_the_data_is_found(tmp_path, names):
    path = archive(tmp_path / "a.zip", dict.fromkeys(names, b"x"))
    with unpacked(path) as root:
        assert (root / "data.yaml").read_bytes() == b"x"
        assert not any(
            file.name.startswith("._") or file.name in ("Thumbs.db", ".DS_Store") for file in root.rglob("*")
        )


def test_a_part_of_a_data_set_is_not_taken_for_the_whole(tmp_path):
    for n, folder in enumerate(("train", "gtFine", "Images", "val2017", "annotations")):
        with unpacked(archive(tmp_path / f"{n}.zip", {f"{folder}/x": b""})) as root:
            assert (root / folder).is_dir()
    with unpacked(archive(tmp_path / "a.zip", {"valley/x": b"", "README": b""})) as root:
        assert root.name == "valley"


def test_colons_stand_in_names_but_not_behind_a_drive(tmp_path):
    with unpacked(archive(tmp_path / "a.zip", {"day/12:30:05.jpg": b"x", "day/b.txt": b""})) as root:
        assert (root / "12:30:05.jpg").read_bytes() == b"x"
    for name in ("C:\\evil", "a\\..\\..\\evil", "\\evil"):
        with pytest.raises(PansightError, match="expected names inside the archive's folder"):
            unpacked(archive(tmp_path / "b.zip", {name: b""})).__enter__()


def test_one_name_spelled_twice_is_refused(tmp_path):
    with pytest.raises(PansightError, match="expected each file once, found 'a/b' twice"):
        unpacked(archive(tmp_path / "a.zip", {"a/b": b"", "a\\b": b""})).__enter__()

"""One mutation of a small tree of files, drawn from a seed: bytes, structure, or the file system around them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mutate_json import VALUES, mutate_json
from mutate_png import mutate_png

Tree = dict[str, "bytes | Special"]


class Special(NamedTuple):
    """What stands in a folder and is no plain file."""

    kind: str  # folder, pipe, link, unreadable
    text: str = ""  # where a link leads to
    data: bytes = b""


def mutate_tree(rng: np.random.Generator, files: dict[str, bytes], others: list[bytes]) -> tuple[str, Tree]:
    """The tree after one change (seldom two or three), and what it was."""
    tree: Tree = dict(files)
    told: list[str] = []
    for _ in range(int(rng.choice([1, 1, 1, 1, 2, 3]))):
        draw = rng.random()
        change = _around if draw < 0.12 else _content
        told.append(change(rng, tree, others))
    return ", then ".join(told), tree


def write_tree(place: Path, tree: Tree) -> None:
    """Folders that a special file hides are left out."""
    for name, what in tree.items():
        path = place / name
        if any(parent in tree for parent in map(str, Path(name).parents)):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, bytes):
            path.write_bytes(what)
        elif what.kind == "folder":
            path.mkdir()
            (path / "inner.png").write_bytes(what.data)
        elif what.kind == "pipe":
            os.mkfifo(path)
        elif what.kind == "link":
            path.symlink_to(what.text)
        else:
            path.write_bytes(what.data)
            path.chmod(0)


def _content(rng: np.random.Generator, tree: Tree, others: list[bytes]) -> str:
    """Another content of one file; annotations more often than images, which are many."""
    plain = {name: data for name, data in tree.items() if isinstance(data, bytes)}
    if not plain:
        return "nothing"
    suffixes = sorted({Path(name).suffix for name in plain})
    suffix = suffixes[int(rng.integers(len(suffixes)))]
    names = [name for name in plain if Path(name).suffix == suffix]
    name = names[int(rng.integers(len(names)))]
    told, tree[name] = mutate_file(rng, name, plain[name], others[int(rng.integers(len(others)))])
    return f"{name}: {told}"


def _around(rng: np.random.Generator, tree: Tree, others: list[bytes]) -> str:
    """Something in the file system: a file that is none, is elsewhere, has another name or is not there."""
    names = [name for name, what in tree.items() if isinstance(what, bytes)]
    if not names:
        return "nothing"
    name = names[int(rng.integers(len(names)))]
    data = tree[name]
    assert isinstance(data, bytes)
    folder = str(Path(name).parent)
    action = (
        "folder",
        "pipe",
        "loop",
        "outside",
        "dangling",
        "unreadable",
        "gone",
        "empty",
        "renamed",
        "double",
        "folder loop",
    )[int(rng.integers(11))]
    if action in ("folder", "pipe"):
        tree[name] = Special(action, data=data)
    elif action == "loop":
        tree[name] = Special("link", Path(name).name)
    elif action == "outside":
        tree[name] = Special("link", "/".join([".."] * name.count("/") + ["..", "elsewhere", "secret.json"]))
    elif action == "dangling":
        tree[name] = Special("link", "/nowhere/at/all")
    elif action == "unreadable":
        tree[name] = Special("unreadable", data=data)
    elif action == "gone":
        del tree[name]
    elif action == "empty":
        tree[name] = b""
    elif action == "renamed":
        del tree[name]
        odd = (
            name.upper(),
            f"{name}.bak",
            f"{folder}/a\nb.png",
            f"{folder}/\udcff.png",
            f"{folder}/{'é' * 100}.png",
            f"x/{name}",
        )
        tree[odd[int(rng.integers(len(odd)))].removeprefix("./")] = data
    elif action == "double":
        suffix = (".png", ".jpg", ".json", ".xml", ".npy", "", ".txt", ".yaml")[int(rng.integers(8))]
        tree[str(Path(name).with_suffix(suffix)) + ("~" if not suffix else "")] = others[int(rng.integers(len(others)))]
    else:
        tree[f"{folder}/loop".removeprefix("./")] = Special("link", "..")
    return f"{name}: {action}"


# --- one file --------------------------------------------------------------------------------------------------------


def mutate_file(rng: np.random.Generator, name: str, data: bytes, other: bytes) -> tuple[str, bytes]:
    """By what the name promises; where the content is not that (any more), bytes."""
    suffix = Path(name).suffix.lower()
    structured: dict[str, Callable[[np.random.Generator, bytes, bytes], tuple[str, bytes]]] = {
        ".json": mutate_json,
        ".png": mutate_png,
        ".xml": _mutate_xml,
        ".yaml": _mutate_yaml,
        ".toml": _mutate_text,
        ".txt": _mutate_text,
        ".npy": _mutate_npy,
        ".jpg": _mutate_jpeg,
    }
    if suffix in structured and rng.random() < 0.75:
        try:
            return structured[suffix](rng, data, other)
        except (ValueError, IndexError, RecursionError):
            pass
    if suffix not in (".png", ".jpg", ".npy") and rng.random() < 0.3:
        return _mutate_text(rng, data, other)
    return _mutate_bytes(rng, data, other)


def _mutate_bytes(rng: np.random.Generator, data: bytes, other: bytes) -> tuple[str, bytes]:
    names = ("flip", "bytes", "cut", "insert", "again", "zero", "splice", "tail", "other", "empty")
    name = names[int(rng.integers(len(names)))]
    at, end = sorted(int(n) for n in rng.integers(0, len(data) + 1, 2))
    if name == "flip" and data:
        changed = bytearray(data)
        changed[min(at, len(data) - 1)] ^= 1 << int(rng.integers(8))
        return name, bytes(changed)
    if name == "bytes" and data:
        changed = bytearray(data)
        for _ in range(int(rng.integers(1, 10))):
            changed[int(rng.integers(len(data)))] = int(rng.integers(256))
        return name, bytes(changed)
    parts: dict[str, bytes] = {
        "cut": data[:at],
        "insert": data[:at] + rng.bytes(int(rng.integers(1, 40))) + data[at:],
        "again": data[:end] + data[at:end] * int(rng.integers(1, 4)) + data[end:],
        "zero": data[:at] + bytes(end - at) + data[end:],
        "splice": data[:at] + other[len(other) // 2 :],
        "tail": data + rng.bytes(int(rng.integers(1, 300))),
        "other": other,
    }
    return name, parts.get(name, b"")


NUMBERS = (
    "nan",
    "inf",
    "-1",
    "1e308",
    "1e999",
    "9" * 400,
    "9" * 5000,
    "0",
    "",
    "0x10",
    "1_000",
    "١",
    "1e-320",
    "2147483648",
    "-0",
)


def _mutate_text(rng: np.random.Generator, data: bytes, other: bytes) -> tuple[str, bytes]:
    """Other numbers and words, other line ends and encodings."""
    text = data.decode("utf-8", "replace")
    names = (
        "utf-16",
        "latin",
        "line ends",
        "nul",
        "number",
        "number",
        "number",
        "line",
        "no line",
        "long",
        "bom",
        "word",
    )
    name = names[int(rng.integers(len(names)))]
    lines = text.split("\n")
    at = int(rng.integers(len(lines)))
    if name == "number":
        return name, _replace(rng, text, "0123456789.-", NUMBERS[int(rng.integers(len(NUMBERS)))]).encode()
    if name == "word":
        word = str(VALUES[int(rng.integers(len(VALUES)))])[:10_000]
        letters = "abcdefghijklmnopqrstuvwxyz0123456789_"
        return name, _replace(rng, text, letters, word).encode("utf-8", "replace")
    made = {
        "utf-16": text.encode("utf-16"),
        "latin": text.replace("a", "é").encode("latin-1", "replace"),
        "line ends": text.replace("\n", ("\r\n", "\r", "\n\n", "\x85", "\u2028")[int(rng.integers(5))]).encode(),
        "nul": (text[: len(text) // 2] + "\0" + text[len(text) // 2 :]).encode(),
        "line": "\n".join([*lines[:at], *[lines[at]] * int(rng.choice([2, 3, 1000])), *lines[at + 1 :]]).encode(),
        "no line": "\n".join(lines[:at] + lines[at + 1 :]).encode(),
        "long": (text + " " * 10**5 + "x" * 10**5).encode(),
        "bom": b"\xef\xbb\xbf" + data,
    }
    return name, made[name]


def _replace(rng: np.random.Generator, text: str, letters: str, new: str) -> str:
    """One run of these letters becomes `new`."""
    places = [n for n, letter in enumerate(text) if letter in letters and (n == 0 or text[n - 1] not in letters)]
    if not places:
        return text + new
    start = end = places[int(rng.integers(len(places)))]
    while end < len(text) and text[end] in letters:
        end += 1
    return text[:start] + new + text[end:]


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))


def _mutate_xml(rng: np.random.Generator, data: bytes, other: bytes) -> tuple[str, bytes]:
    text = data.decode("utf-8", "replace")
    names = ("laughs", "external", "doctype", "deep", "attribute", "tag", "encoding", "element", "cdata")
    name = names[int(rng.integers(len(names)))]
    head, _, body = text.partition("?>")
    if not body:
        raise ValueError("no XML")
    if name in ("laughs", "external", "doctype"):
        inner = {
            "laughs": f'[<!ENTITY l0 "ha">{LAUGHS}]',
            "external": '[<!ENTITY l11 SYSTEM "file:///etc/passwd">]',
            "doctype": 'SYSTEM "file:///etc/passwd"',
        }
        return name, f"{head}?><!DOCTYPE annotations {inner[name]}>{body.replace('car', '&l11;', 1)}".encode()
    if name == "encoding":
        return name, text.replace(
            "utf-8", ("utf-7", "utf-16", "ascii", "nonsense", "cp037")[int(rng.integers(5))], 1
        ).encode()
    if name == "deep":
        at = body.find("<image")
        return name, f"{head}?>{body[:at]}{'<a>' * 20_000}{'</a>' * 20_000}{body[at:]}".encode()
    if name == "tag":
        return name, _replace(
            rng, text, "abcdefghijklmnopqrstuvwxyz", ("image", "mask", "box", "polygon", "x")[int(rng.integers(5))]
        ).encode()
    if name == "attribute":
        places = [n for n in range(len(text)) if text.startswith('="', n)]
        at = places[int(rng.integers(len(places)))] + 2
        value = str(VALUES[int(rng.integers(len(VALUES)))])[:5000].replace("<", "").replace('"', "").replace("&", "")
        return name, (text[:at] + value + text[text.find('"', at) :]).encode("utf-8", "replace")
    if name == "element":
        start = text.find("<image")
        return name, (text[:start] + text[start:].replace("</image>", "") * 2).encode()
    return name, text.replace("car", "<![CDATA[car]]>").encode()


YAML_LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


def _mutate_yaml(rng: np.random.Generator, data: bytes, other: bytes) -> tuple[str, bytes]:
    pieces = (
        YAML_LAUGHS + "names: *a11\n",
        "names: !!python/object/apply:os.system ['touch evil.txt']\n",
        "names: !!python/name:os.system\n",
        "names: &x [*x]\n",
        "names: {.nan: a, .inf: b}\n",
        "names: {1e3: a, 2: [b]}\n",
        "names: {? [a, b] : c}\n",
        "names: {-1: a, 99999999999: b}\n",
        "nc: .nan\nnames: 5\n",
        "nc: 100000000000\nnames: [a]\n",
        "train: [../../elsewhere, /etc, 5, null]\n",
        "train: ../../../elsewhere\n",
        "train: {a: b}\n",
        "path: /\ntrain: etc\n",
        "path: 2001-01-01\n",
        "names: [" * 5000,
        "- a\n- b\n",
        "%TAG ! tag:x\n---\nnames: [a]\n---\nnames: [b]\n",
        "<<: *nothing\n",
        "names: !!binary aGFsbG8=\n",
        "names: 2001-13-45\n",
        "names: !!timestamp 9999-99-99\n",
        "names: !!int x\n",
        "names: !!float x\n",
        "names: [a, a]\n",
        "\tnames: x\n",
        "names: 0b102\nnc: 1:99:99\n",
        "names: !!set {a, b}\nval: !!omap [a: b]\n",
    )
    piece = pieces[int(rng.integers(len(pieces)))]
    text = data.decode("utf-8", "replace")
    kept = "".join(
        line + "\n" for line in text.split("\n") if not line.startswith(piece.split(":")[0]) and line[:1] != " "
    )
    return f"yaml {piece[:30]!r}", (piece if rng.random() < 0.2 else kept + piece).encode()


def _mutate_npy(rng: np.random.Generator, data: bytes, other: bytes) -> tuple[str, bytes]:
    """Another header over the same bytes."""
    if data[:6] != b"\x93NUMPY":
        raise ValueError("no array")
    shapes = (
        "(3, 4)",
        "(0, 0)",
        "()",
        "(100000, 100000)",
        "(4000000000, 4000000000)",
        "(-1, 4)",
        "(1, 1, 1, 3, 4)",
        "(3, 'x')",
    )
    kinds = (
        "'<i4'",
        "'|O'",
        "'<f8'",
        "'<u8'",
        "'<c16'",
        "'<U10'",
        "'|b1'",
        "[('a', '<i4')]",
        "'<M8[s]'",
        "'|V3'",
        "'x'",
        "5",
    )
    shape, kind = shapes[int(rng.integers(len(shapes)))], kinds[int(rng.integers(len(kinds)))]
    header = f"{{'descr': {kind}, 'fortran_order': {bool(rng.integers(2))}, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    body = data[-48:] if rng.random() < 0.5 else b"cos\nsystem\n(S'touch evil.txt'\ntR."
    return f"array {kind} {shape}", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + body


def _mutate_jpeg(rng: np.random.Generator, data: bytes, other: bytes) -> tuple[str, bytes]:
    """Other sizes in the frame header, other marker lengths."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no JPEG")
    changed = bytearray(data)
    at = 2
    markers: list[int] = []
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        markers.append(at)
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    frame = next((n for n in markers if data[n + 1] in (0xC0, 0xC2)), None)
    if frame is not None and rng.random() < 0.6:
        changed[frame + 5 : frame + 9] = struct.pack(">HH", *rng.choice([0, 1, 6, 8, 65_535], 2).tolist())
        return "JPEG size", bytes(changed)
    place = markers[int(rng.integers(len(markers)))]
    changed[place + 2 : place + 4] = struct.pack(">H", int(rng.choice([0, 1, 2, 65_535])))
    return "JPEG marker", bytes(changed)

"""The compiled part of reading id PNGs: undoing PNG's row filters, and counting pairs of ids without an id map.

Source: PNG specification, section 9 (filters). It is fast because label maps consist of long runs, so that almost all
bytes of a filtered row are zero. A row is stored as one uint32 for each pixel (R + 256·G + 65536·B), and is changed in
place from the row above into the row itself. With filter Up a zero byte leaves a pixel as it is, and with Paeth as
well, as long as the pixel to the left has not changed. So of a row the words of eight bytes that are not zero are
listed first, and only pixels in them or near them are looked at. Those that change are listed, too, and pairs are
counted by them: each column knows since which row it has had its pair of ids.

Loops that list something write each candidate and go one place on where it counts (`n += …`), since a branch that no
processor can foresee costs more than ten such steps.
"""

# numba's decorator leaves its results without a type, and its sized integers are int only to numba
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedFunctionDecorator=false, reportMissingTypeStubs=false
# pyright: reportAssignmentType=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false, reportIndexIssue=false
from __future__ import annotations

import numpy as np
from numba import int64, uint32, uint64  # type: ignore[import-untyped]
from numpy.typing import NDArray

from pansight.ops.fast.kernels.compiled import compiled

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
Row = NDArray[np.uint32]
Rows = NDArray[np.uint32]
Counts = NDArray[np.int64]

NONE, SUB, UP, AVERAGE, PAETH = 0, 1, 2, 3, 4

SLOTS = 1 << 13
"""Places in the table of pairs."""
MOST_PAIRS = SLOTS * 5 // 8
EMPTY = 2**64 - 1
BAD_FILTER, TOO_MANY_PAIRS, TOO_MANY_CHANGES = -1, -2, -3
ROWS, MARGIN = 5, 4
"""Rows that `count_pairs` works in, and by how much they are longer than the image is wide."""


@compiled
def _pixel(raw: Bytes, at: int) -> int:
    return uint32(raw[at]) | (uint32(raw[at + 1]) << uint32(8)) | (uint32(raw[at + 2]) << uint32(16))


@compiled
def _add(a: int, b: int) -> int:
    """Three bytes added at once, each modulo 256: the upper bits apart, so that no carry crosses."""
    return ((a & uint32(0x7F7F7F)) + (b & uint32(0x7F7F7F))) ^ ((a ^ b) & uint32(0x808080))


@compiled
def _paeth_byte(left: int, above: int, corner: int) -> int:
    estimate = left + above - corner
    to_left, to_above, to_corner = abs(estimate - left), abs(estimate - above), abs(estimate - corner)
    if to_left <= to_above and to_left <= to_corner:
        return left
    return above if to_above <= to_corner else corner


@compiled
def _paeth(left: int, above: int, corner: int) -> int:
    if left == corner:
        return above
    if above == corner:
        return left
    result = uint32(0)
    for k in range(3):
        shift = uint32(8 * k)
        a = int64((left >> shift) & uint32(255))
        b = int64((above >> shift) & uint32(255))
        c = int64((corner >> shift) & uint32(255))
        result |= uint32(_paeth_byte(a, b, c)) << shift
    return result


@compiled
def _list_words(words: Words, start: int, end: int, listed: Row) -> int:
    """The places of the words, of those that bytes `start` … `end` − 1 lie in, that are not zero. Gives how many."""
    n = uint64(0)
    for word in range(uint64(start) >> uint64(3), (uint64(end) + uint64(7)) >> uint64(3)):
        listed[n] = word
        n += uint64(words[word] != uint64(0))
    return int64(n)


@compiled
def _columns(word: int, start: int, width: int, step: int) -> tuple[int, int]:
    """The pixels of a row that have a byte in a word: the first, and the one behind the last."""
    first = max(int64(word) * 8 - start, 0)
    last = int64(word) * 8 + 7 - start
    if step == 3:  # a division by a constant is a multiplication
        return int64(uint64(first) // uint64(3)), min(width, int64(uint64(last) // uint64(3)) + 1)
    return first >> 2, min(width, (last >> 2) + 1)


@compiled
def _undo_sub(raw: Bytes, listed: Row, n: int, start: int, row: Row, width: int, step: int, seen: Row) -> int:
    done, value, changes = 0, uint32(0), uint64(0)
    for k in range(n + 1):
        first, behind = _columns(listed[k], start, width, step) if k < n else (width, width)
        for x in range(done, behind):
            if x >= first:
                value = _add(value, _pixel(raw, start + x * step))
            seen[changes] = x
            changes += uint64(row[x + 1] != value)
            row[x + 1] = value
        done = behind
    return int64(changes)


@compiled
def _undo_up(raw: Bytes, listed: Row, n: int, start: int, row: Row, width: int, step: int, seen: Row) -> int:
    behind, changes = 0, uint64(0)
    for k in range(n):
        first, next_behind = _columns(listed[k], start, width, step)
        for x in range(max(first, behind), next_behind):
            rest = _pixel(raw, start + x * step)
            seen[changes] = x
            changes += uint64(rest != uint32(0))
            row[x + 1] = _add(row[x + 1], rest)
        behind = next_behind
    return int64(changes)


@compiled
def _undo_paeth(raw: Bytes, listed: Row, n: int, start: int, row: Row, width: int, step: int, seen: Row) -> int:
    x, changes = 0, uint64(0)
    for k in range(n):
        first, behind = _columns(listed[k], start, width, step)
        x = max(x, first)
        # left and corner are equal here: a zero then means "as above", which stands in the row already
        left = corner = row[x]
        while x < behind or (left != corner and x < width):
            above = row[x + 1]
            value = _add(_paeth(left, above, corner), _pixel(raw, start + x * step))
            row[x + 1] = value
            seen[changes] = x
            changes += uint64(value != above)
            left, corner = value, above
            x += 1
    return int64(changes)


@compiled
def _undo_none(raw: Bytes, start: int, row: Row, width: int, step: int, seen: Row) -> int:
    n = uint64(0)
    for x in range(width):
        value = _pixel(raw, start + x * step)
        seen[n] = x
        n += uint64(row[x + 1] != value)
        row[x + 1] = value
    return int64(n)


@compiled
def _undo_average(raw: Bytes, start: int, row: Row, width: int, step: int, seen: Row) -> int:
    left, n = uint32(0), uint64(0)
    for x in range(width):
        above = row[x + 1]
        mean = (left & above) + (((left ^ above) & uint32(0xFEFEFE)) >> uint32(1))  # rounded down, byte by byte
        left = _add(mean, _pixel(raw, start + x * step))
        seen[n] = x
        n += uint64(above != left)
        row[x + 1] = left
    return int64(n)


@compiled
def undo_filter(raw: Bytes, words: Words, start: int, row: Row, width: int, step: int, listed: Row, seen: Row) -> int:
    """One filtered row, in place of the row above. Gives how many pixels differ from those above, or BAD_FILTER.

    raw: uint8, the filter's number at start − 1, then `width` pixels of `step` bytes (RGB, or RGBA without its A).
    words: the same memory as uint64. row: uint32 (W + 1,), row[0] = 0 stands for the pixel to the left of the first.
    listed: uint32 (W + MARGIN,), room to work in. seen: uint32 (W + 1,), the columns of those pixels.
    """
    kind = raw[start - 1]
    if kind == NONE:
        return _undo_none(raw, start, row, width, step, seen)
    if kind == AVERAGE:
        return _undo_average(raw, start, row, width, step, seen)
    if kind > PAETH:
        return BAD_FILTER
    n = _list_words(words, start, start + width * step, listed)
    if kind == UP:
        return _undo_up(raw, listed, n, start, row, width, step, seen)
    if kind == PAETH:
        return _undo_paeth(raw, listed, n, start, row, width, step, seen)
    return _undo_sub(raw, listed, n, start, row, width, step, seen)


@compiled
def fill_ids(raw: Bytes, words: Words, step: int, rows: Rows, ids: NDArray[np.int32]) -> int:
    """All rows of an image into an int32 (H, W) map. rows: uint32 (3, W + MARGIN). Gives 0, or BAD_FILTER."""
    height, width = ids.shape
    row = rows[0]
    row[:] = 0
    for y in range(height):
        if undo_filter(raw, words, y * (width * step + 1) + 1, row, width, step, rows[1], rows[2]) < 0:
            return BAD_FILTER
        ids[y] = row[1 : width + 1]
    return 0


@compiled
def _slot(keys: Words, key: int) -> int:
    """The place of `key` in the table of pairs, or the empty one where it belongs."""
    slot = (key * uint64(0x9E3779B97F4A7C15)) >> uint64(51)  # the upper 13 bits: SLOTS
    while keys[slot] != key and keys[slot] != uint64(EMPTY):
        slot = (slot + uint64(1)) & uint64(SLOTS - 1)
    return slot


@compiled
def _add_pair(keys: Words, counts: Counts, used: Counts, slot: int, key: int) -> bool:
    """Put a new pair into the table of pairs. False where that is full."""
    if used[0] >= MOST_PAIRS:
        return False
    keys[slot] = key
    counts[slot] = 0
    used[0] += 1
    used[used[0]] = slot
    return True


@compiled
def _note_changes(
    seen: Row, y: int, row_a: Row, row_b: Row, since: Row, pairs: Words, keys: Words, counts: Counts,
    used: Counts,
) -> bool:  # fmt: skip
    """Count what these columns had above row `y`, and note what they have from there. False where there is no room."""
    for k in range(uint64(len(seen))):
        x = uint64(seen[k])
        pixels, key = y - int64(since[x]), pairs[x]
        since[x] = y
        pairs[x] = (uint64(row_a[x + uint64(1)]) << uint64(24)) | uint64(row_b[x + uint64(1)])
        slot = _slot(keys, key)
        if keys[slot] != key and pixels and not _add_pair(keys, counts, used, slot, key):
            return False
        counts[slot] += pixels  # of an empty place nothing
    return True


@compiled
def list_changes(
    raw: Bytes, words: Words, step: int, height: int, width: int, rows: Rows, ends: Counts, columns: Row, values: Row
) -> int:
    """The pixels of an image that differ from those above (above the first row is 0), row by row.

    rows: uint32 (ROWS, W + MARGIN), room to work in. Filled are ends: int64 (H,), how many there are up to the end of
    each row; columns, values: uint32 (N,), where they are and what they become. Gives how many there are, or
    BAD_FILTER, or TOO_MANY_CHANGES for more than N − W.
    """
    row, listed, seen = rows[0], rows[1], rows[2]
    row[:] = 0
    total, most = 0, len(columns) - width
    for y in range(height):
        n = undo_filter(raw, words, y * (width * step + 1) + 1, row, width, step, listed, seen)
        if n < 0:
            return BAD_FILTER
        if total > most:
            return TOO_MANY_CHANGES
        for k in range(n):
            columns[total + k] = seen[k]
            values[total + k] = row[seen[k] + 1]
        total += n
        ends[y] = total
    return total


@compiled
def count_pairs(
    ends: Counts, columns: Row, values: Row, raw: Bytes, words: Words, step: int, height: int, width: int,
    rows: Rows, pairs: Words, keys: Words, counts: Counts, used: Counts,
) -> int:  # fmt: skip
    """Count the pixels of every pair of ids of two images. Gives the number of pairs, or BAD_FILTER, TOO_MANY_PAIRS.

    ends, columns, values: `list_changes` of the first image; raw, words, step: the second one.
    rows: uint32 (ROWS, W + MARGIN), room to work in, and pairs: uint64 (W + MARGIN,).
    keys: uint64 (SLOTS,), EMPTY everywhere: a hash table of (first << 24 | second), with counts int64 (SLOTS,).
    used: int64 (SLOTS,), the number of filled places, then those places.
    """
    row_a, row_b, seen, since, listed = rows[0], rows[1], rows[2], rows[3], rows[4]
    row_a[:] = 0
    row_b[:] = 0
    since[:] = 0
    pairs[:] = 0
    used[0] = 0
    first = 0
    for y in range(height):
        n = undo_filter(raw, words, y * (width * step + 1) + 1, row_b, width, step, listed, seen)
        if n < 0:
            return BAD_FILTER
        for k in range(first, ends[y]):
            row_a[columns[k] + 1] = values[k]
        # a column that both change is met twice: the second time nothing is left to count
        if not _note_changes(columns[first : ends[y]], y, row_a, row_b, since, pairs, keys, counts, used):
            return TOO_MANY_PAIRS
        if not _note_changes(seen[:n], y, row_a, row_b, since, pairs, keys, counts, used):
            return TOO_MANY_PAIRS
        first = ends[y]
    for x in range(width):
        seen[x] = x
    if not _note_changes(seen[:width], height, row_a, row_b, since, pairs, keys, counts, used):
        return TOO_MANY_PAIRS
    return used[0]

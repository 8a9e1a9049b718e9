"""The compiled part of reading id PNGs: undoing PNG's row filters, and counting pairs of ids without an id map.

Source: PNG specification, section 9 (filters). It is fast because label maps consist of long runs, so that almost all
bytes of a filtered row are zero. A row is stored as one uint32 for each pixel (R + 256·G + 65536·B), and is changed in
place from the row above into the row itself. With filter Up a zero byte leaves a pixel as it is, and with Paeth as
well, as long as the pixel to the left has not changed. So only pixels near a non-zero byte are changed, and zeros are
skipped eight bytes at a time.
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
Counts = NDArray[np.int64]

NONE, SUB, UP, AVERAGE, PAETH = 0, 1, 2, 3, 4

SLOTS = 1 << 13
"""Places in the table of pairs."""
MOST_PAIRS = SLOTS * 5 // 8
EMPTY = 2**64 - 1
BAD_FILTER, TOO_MANY_PAIRS = -1, -2


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
    result = uint32(0)
    for k in range(3):
        shift = uint32(8 * k)
        a = int64((left >> shift) & uint32(255))
        b = int64((above >> shift) & uint32(255))
        c = int64((corner >> shift) & uint32(255))
        result |= uint32(_paeth_byte(a, b, c)) << shift
    return result


@compiled
def _next_nonzero(raw: Bytes, words: Words, at: int, end: int) -> int:
    """The first position from `at` on whose byte is not zero, or `end`. words: the same memory, eight bytes each."""
    while at < end and at & 7:
        if raw[at] != 0:
            return at
        at += 1
    if at >= end:
        return end
    word, last, one, four = uint64(at >> 3), uint64(end >> 3), uint64(1), uint64(4)
    while word + four <= last:
        if (words[word] | words[word + one]) | (words[word + uint64(2)] | words[word + uint64(3)]) != uint64(0):
            break
        word += four
    while word < last and words[word] == uint64(0):
        word += one
    at = int64(word) << 3
    while at < end and raw[at] == 0:
        at += 1
    return min(at, end)


@compiled
def _undo_sub(raw: Bytes, words: Words, start: int, row: Row, width: int, step: int) -> None:
    end, x, value = start + width * step, 0, uint32(0)
    while x < width:
        here = (_next_nonzero(raw, words, start + x * step, end) - start) // step
        for k in range(x, here):
            row[k + 1] = value
        if here >= width:
            return
        value = _add(value, _pixel(raw, start + here * step))
        row[here + 1] = value
        x = here + 1


@compiled
def _undo_up(raw: Bytes, words: Words, start: int, row: Row, width: int, step: int) -> bool:
    end, changed = start + width * step, False
    at = _next_nonzero(raw, words, start, end)
    while at < end:
        x = (at - start) // step
        row[x + 1] = _add(row[x + 1], _pixel(raw, start + x * step))
        changed = True
        at = _next_nonzero(raw, words, start + (x + 1) * step, end)
    return changed


@compiled
def _undo_paeth(raw: Bytes, words: Words, start: int, row: Row, width: int, step: int) -> bool:
    end, changed, x = start + width * step, False, 0
    while True:
        # left and corner are equal here: a zero then means "as above", which stands in the row already
        at = _next_nonzero(raw, words, start + x * step, end)
        if at >= end:
            return changed
        changed = True
        x = (at - start) // step
        left = corner = row[x]
        while x < width:
            above, rest = row[x + 1], _pixel(raw, start + x * step)
            value = left if rest == 0 and above == corner else _add(_paeth(left, above, corner), rest)
            row[x + 1] = value
            left, corner = value, above
            x += 1
            if left == corner:
                break
        if x >= width:
            return changed


@compiled
def undo_filter(raw: Bytes, words: Words, start: int, row: Row, width: int, step: int) -> int:
    """One filtered row, in place of the row above. Gives 1 where pixels may differ, 0 where none does, or an error.

    raw: uint8, the filter's number at start − 1, then `width` pixels of `step` bytes (RGB, or RGBA without its A).
    row: uint32 (W + 1,), row[0] = 0 stands for the pixel to the left of the first.
    """
    kind = raw[start - 1]
    if kind == UP:
        return 1 if _undo_up(raw, words, start, row, width, step) else 0
    if kind == PAETH:
        return 1 if _undo_paeth(raw, words, start, row, width, step) else 0
    if kind == SUB:
        _undo_sub(raw, words, start, row, width, step)
    elif kind == NONE:
        for x in range(width):
            row[x + 1] = _pixel(raw, start + x * step)
    elif kind == AVERAGE:
        left = uint32(0)
        for x in range(width):
            above = row[x + 1]
            mean = (left & above) + (((left ^ above) & uint32(0xFEFEFE)) >> uint32(1))  # rounded down, byte by byte
            left = _add(mean, _pixel(raw, start + x * step))
            row[x + 1] = left
    else:
        return BAD_FILTER
    return 1


@compiled
def fill_ids(raw: Bytes, words: Words, step: int, row: Row, ids: NDArray[np.int32]) -> int:
    """All rows of an image into an int32 (H, W) map. Gives 0, or BAD_FILTER."""
    height, width = ids.shape
    row[:] = 0
    for y in range(height):
        if undo_filter(raw, words, y * (width * step + 1) + 1, row, width, step) < 0:
            return BAD_FILTER
        ids[y] = row[1:]
    return 0


@compiled
def _slot(keys: Words, key: int) -> int:
    """The place of `key` in the table of pairs, or the empty one where it belongs."""
    slot = (key * uint64(0x9E3779B97F4A7C15)) >> uint64(51)  # the upper 13 bits: SLOTS
    while keys[slot] != key and keys[slot] != uint64(EMPTY):
        slot = (slot + uint64(1)) & uint64(SLOTS - 1)
    return slot


@compiled
def _scan(a: Row, b: Row, width: int, keys: Words, counts: Counts, used: Counts, slots: Counts, lengths: Counts) -> int:
    """The runs of equal pairs of two rows: their places in the table and their lengths. Gives how many, or an error."""
    n, start, x = 0, uint64(0), uint64(1)
    end, one, eight = uint64(width), uint64(1), uint64(8)  # unsigned: an index that may be negative costs a test
    while True:
        while x + eight <= end:
            different = uint32(0)
            for k in range(x, x + eight):
                different |= (a[k + one] ^ a[k]) | (b[k + one] ^ b[k])
            if different != 0:
                break
            x += eight
        while x < end and a[x + one] == a[x] and b[x + one] == b[x]:
            x += one
        key = (uint64(a[x]) << uint64(24)) | uint64(b[x])
        slot = _slot(keys, key)
        if keys[slot] != key:
            if used[0] >= MOST_PAIRS:
                return TOO_MANY_PAIRS
            keys[slot] = key
            counts[slot] = 0
            used[0] += 1
            used[used[0]] = slot
        slots[n], lengths[n] = slot, x - start
        n += 1
        if x >= end:
            return n
        start = x
        x += one


@compiled
def count_pairs(
    raw_a: Bytes, words_a: Words, step_a: int, raw_b: Bytes, words_b: Words, step_b: int, height: int, width: int,
    row_a: Row, row_b: Row, keys: Words, counts: Counts, used: Counts, slots: Counts, lengths: Counts,
) -> int:  # fmt: skip
    """Count the pixels of every pair of ids of two images. Gives the number of pairs, or BAD_FILTER, TOO_MANY_PAIRS.

    keys uint64 (SLOTS,), EMPTY everywhere: a hash table of (first << 24 | second), with counts int64 (SLOTS,).
    used int64 (SLOTS,): the number of filled places, then those places. slots, lengths int64 (W,): room for a row.
    A row in which neither image changes is not looked at: the runs of the row above count once more.
    """
    row_a[:] = 0
    row_b[:] = 0
    used[0] = 0
    runs, times = 0, 0
    for y in range(height):
        changed_a = undo_filter(raw_a, words_a, y * (width * step_a + 1) + 1, row_a, width, step_a)
        changed_b = undo_filter(raw_b, words_b, y * (width * step_b + 1) + 1, row_b, width, step_b)
        if changed_a < 0 or changed_b < 0:
            return BAD_FILTER
        if y > 0 and changed_a == 0 and changed_b == 0:
            times += 1
            continue
        for k in range(runs):
            counts[slots[k]] += lengths[k] * times
        runs = _scan(row_a, row_b, width, keys, counts, used, slots, lengths)
        if runs < 0:
            return runs
        times = 1
    for k in range(runs):
        counts[slots[k]] += lengths[k] * times
    return used[0]

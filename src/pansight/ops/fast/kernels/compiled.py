"""Compiled loops: plain Python functions that numba turns into machine code when they are first called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function, reorder_sums: bool = False, fuse_products: bool = False) -> Function:
    """Compile a function at its first call and store the machine code on disk; it runs without Python's global lock.

    reorder_sums: long sums may be taken in several parts, as vector instructions do; NaN and inf stay what they are.
    fuse_products: a · b + c may be rounded once, as torch's own loops have it.
    Where no folder for the machine code can be written (a read-only installation without a home), each process compiles
    again.
    """
    from numba import njit  # type: ignore[import-untyped]

    fastmath: set[str] | bool = {"contract"} if fuse_products else False
    if reorder_sums:
        fastmath = {"reassoc", "contract", "nsz"}
    try:
        return cast(Function, njit(nogil=True, cache=True, fastmath=fastmath)(function))
    except RuntimeError:
        return cast(Function, njit(nogil=True, fastmath=fastmath)(function))

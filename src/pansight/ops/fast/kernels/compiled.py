"""Compiled loops: plain Python functions that numba turns into machine code when they are first called."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pickle import UnpicklingError
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function, reorder_sums: bool = False, fuse_products: bool = False) -> Function:
    """Compile a function at its first call and store the machine code on disk; it runs without Python's global lock.

    reorder_sums: long sums may be taken in several parts, as vector instructions do; NaN and inf stay what they are.
    fuse_products: a · b + c may be rounded once, as torch's own loops have it.
    Where the machine code cannot be stored (a read-only installation without a home, a full disk) or read (a damaged
    file), each process compiles again.
    """
    from numba import njit  # type: ignore[import-untyped]

    fastmath: set[str] | bool = {"contract"} if fuse_products else False
    if reorder_sums:
        fastmath = {"reassoc", "contract", "nsz"}
    kernel: Any = njit(nogil=True, fastmath=fastmath)(function)
    with suppress(RuntimeError):  # numba found no folder
        kernel._cache = _store(function)
    return cast(Function, kernel)


def _store(function: Callable[..., Any]) -> Any:
    """numba's cache on disk, of which errors of the disk are no errors of the program that asked for a result.

    numba itself raises them out of the call that compiles. Raises RuntimeError where there is no folder.
    """
    from numba.core.caching import FunctionCache  # type: ignore[import-untyped]

    class Store(FunctionCache):
        def load_overload(self, sig: Any, target_context: Any) -> Any:
            with suppress(OSError, EOFError, UnpicklingError):
                return cast(Any, super()).load_overload(sig, target_context)
            return None

        def save_overload(self, sig: Any, data: Any) -> None:
            with suppress(OSError, EOFError, UnpicklingError):  # it reads its index first
                cast(Any, super()).save_overload(sig, data)

    return Store(function)

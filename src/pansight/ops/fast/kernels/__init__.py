"""Loops that numba compiles when they are first called."""

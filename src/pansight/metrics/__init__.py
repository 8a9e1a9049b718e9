"""Figures: update, compute, merge."""

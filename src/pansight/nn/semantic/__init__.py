"""Heads that predict a class for every pixel."""

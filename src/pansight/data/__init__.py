"""Readers, transforms and the loader."""

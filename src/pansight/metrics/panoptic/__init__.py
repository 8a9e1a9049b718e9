"""Panoptic quality and what explains it."""

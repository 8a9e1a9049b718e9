"""Panoptic quality, its variants, and the analysis of errors."""

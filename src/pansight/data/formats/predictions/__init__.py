"""Predictions of any tool, read image by image: objects as COCO results, semantic maps as PNGs or as COCO-stuff
results, and which of their images and classes are meant.
"""

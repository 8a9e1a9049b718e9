"""Scoring COCO panoptic files, without reading photos and without loading torch."""

"""Boxes, masks and features of single regions, and the losses of detectors."""

"""Boxes, masks and RoIAlign features of single regions, and the losses of the R-CNN family."""

"""Semantic segmentation: the losses of pixels, the weights of classes, and weight maps."""

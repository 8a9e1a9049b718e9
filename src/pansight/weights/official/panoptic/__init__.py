"""Official weights of the convolutional panoptic systems."""

"""Deformable attention, which reads only a few points of each feature map, and sine positions."""

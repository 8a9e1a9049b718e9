"""Backbones: timm's networks as feature pyramids, Swin, and plain vision transformers."""

"""What sees the pixels first: timm's networks as feature pyramids, and plain transformers."""

"""Layers of DETR and the mask transformers: attention, pixel decoders, DETR's mask head, mask annealing."""

"""What the mask transformers share: attention, pixel decoders, DETR's mask head, mask annealing."""

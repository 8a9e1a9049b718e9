"""Pictures of what a model or an annotation says: segments, objects and their names over a photo."""

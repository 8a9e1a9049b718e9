"""COCO panoptic files as the metrics read them: without images, without torch."""

"""Every defect of a COCO panoptic data set at once, what it holds, and a repaired copy."""

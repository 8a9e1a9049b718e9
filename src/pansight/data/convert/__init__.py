"""Any annotations → COCO panoptic, and back."""

"""pansight: panoptic segmentation from anyone's annotations to a trained, measured, explained model."""

"""The detectors: boxes, and masks where they have them, of things; one file each."""

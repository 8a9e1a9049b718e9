"""Label maps: read from PNG files and counted as runs, without a map of pixels where none is needed."""

"""Reading id maps from PNG files and counting their pixels, as runs of equal values where possible."""

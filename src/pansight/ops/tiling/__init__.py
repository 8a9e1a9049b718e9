"""Photos that are predicted in overlapping tiles, joined to one prediction across the seams."""

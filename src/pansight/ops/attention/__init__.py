"""Attention that looks at few places, and the positions that attention knows of."""

"""Targets and losses of systems that find segments by their centres."""

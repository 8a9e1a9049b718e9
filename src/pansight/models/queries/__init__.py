"""The systems of learned queries, each of which says a class and a mask; one file each."""

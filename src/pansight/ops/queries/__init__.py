"""Learning with a set of queries: which query answers for which segment, and what it costs to be wrong."""

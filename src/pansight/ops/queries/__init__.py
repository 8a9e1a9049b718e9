"""Training with a set of queries: the matching of queries to true segments, the targets and the losses."""

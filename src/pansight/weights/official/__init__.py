"""The files that the authors of each system published: one file per origin."""

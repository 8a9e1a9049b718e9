"""Loading the checkpoints that the authors of each system published; one file for each repository."""

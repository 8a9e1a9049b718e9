"""Official checkpoints to ours: one file per origin."""

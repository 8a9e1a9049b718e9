"""The data sets that are trained on as they are: one file per format."""

"""Data sets that train without conversion; one file for each format."""

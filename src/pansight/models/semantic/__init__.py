"""The semantic networks: a class for every pixel; one file each."""

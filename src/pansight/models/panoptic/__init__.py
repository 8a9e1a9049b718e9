"""The systems that put a branch for things and one for stuff together to one map; one file each."""

"""The commands of the command line by subject; `pansight.apps.cli` joins them."""

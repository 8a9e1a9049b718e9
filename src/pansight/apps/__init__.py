"""The user's side: the command line, the report and the drawings."""

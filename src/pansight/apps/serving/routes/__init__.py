"""The routes of the server, by whom they are for: each file gives a router of FastAPI over a `Service`."""

"""Pictures and HTML pages: overlays, reports, the viewer. The viewer and the comparison do not load torch."""

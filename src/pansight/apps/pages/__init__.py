"""What people look at: overlays, reports, the viewer. The viewer and the comparison do without torch."""

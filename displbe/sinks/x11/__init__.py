"""The X11 sink: a window for each of the guests' connectors on a desktop."""

"""The X11 sink: a window on a desktop for each connector of a guest."""

"""The sinks, which show guests' pictures. `base` is their interface; `registry` makes one by its name."""

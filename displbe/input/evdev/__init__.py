"""The host's evdev devices: which ones guests use, how their events are read and decoded."""

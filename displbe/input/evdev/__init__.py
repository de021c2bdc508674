"""The host's evdev devices: finds those that guests name, reads their events and decodes them."""

"""vkbd: guests' keyboards, pointers and touch screens, from evdev devices and compositor windows to the guests' pages."""

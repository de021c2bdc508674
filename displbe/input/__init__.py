"""Guests' keyboards, pointers and touch screens (vkbd): from evdev devices and compositor windows to the guests' pages."""

"""Guests' keyboards, pointers and touch screens (vkbd): from the operator's devices to the guests' pages."""

"""The wire: bytes in, values out. No file descriptor, no clock, no await; nothing else of displbe is imported here."""

"""The protocols without I/O: bytes in, values out. No file descriptor, no clock, no await. Nothing else of displbe is imported."""

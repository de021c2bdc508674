"""The protocols without I/O: bytes in, values out. No file descriptor, no clock, no await; imports nothing else of displbe."""

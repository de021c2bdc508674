"""displbe: the backend of Xen's paravirtual display."""

__version__ = "0.1.0"

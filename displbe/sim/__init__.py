"""A simulated Xen in one process: the interfaces of `xen.port` on memfds and eventfds, a XenStore, a toolstack, and guests."""

"""The sink that is DRM master.

Modules, from the kernel upwards: `uapi` is the kernel's interface, `device` an open card, `scanout` a pipe to a
connector, `output` a connector that a guest has, `card` a card with its outputs, `sink` all cards. `binding` says which
connectors an output's name stands for, `placement` which modes are best for a picture, `mode_search` which are possible.
"""

"""The sink that is DRM master.

`uapi` is the kernel's interface, `device` an open card, `card` a card with its outputs, `output` a connector that a
guest has, `scanout` what puts frames onto it, `sink` all cards.
"""

"""The sink that is DRM master: `uapi` the kernel's interface, `device` a card, `output` a connector, `sink` all of them."""

"""Framebuffers that the graphics card itself refuses."""

from __future__ import annotations

from lab.backend import backend
from lab.test_hostile import EINVAL, hostile
from lab.vm import Machine

CONFIG = """
sink = "drm"
[drm]
zero-copy = "require"
"""


def test_shapes_that_the_card_cannot_show(machine: Machine) -> None:
    """C13: virtio-gpu refuses the framebuffers, and the log gives the reason; a valid one is served afterwards."""
    with backend(machine, CONFIG) as displbe:
        try:
            lines = hostile(machine, "limits:0", 60)
        finally:
            machine.destroy("hostile")
        refused = [str(line["reason"]) for line in displbe.events("request refused")]
    print("\n".join(refused))
    assert lines == [
        f"limits: 16384x1 XR24: 0 {-EINVAL}",
        f"limits: 64x64 RG16: 0 {-EINVAL}",
        "limits: 64x64 XR24: 0 0",
    ]
    assert len(refused) == 2
    assert "RG16" in refused[1]

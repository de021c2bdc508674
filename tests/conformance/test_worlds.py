"""No test of the suite is silently left out: each runs in a world of this machine or of the lab."""

from __future__ import annotations

import inspect
from typing import Final

from conformance import test_event_channels, test_pages, test_xenstore
from conformance.world import HOST, fitting

LEFT_OUT: Final = {
    False: {
        "test_a_bad_reference_leaves_nothing_exported",
        "test_a_dmabuf",
        "test_a_dmabuf_of_a_mapped_buffer",
        "test_closing_waits_for_whoever_holds_the_dmabuf",
    },
    True: {"test_a_dmabuf_where_there_is_none", "test_no_sharing_of_dmabufs_where_there_is_none"},
}
"""The tests that a run leaves out. Simulated Xen: those that need a kernel's dma-bufs; real Xen: those that need their absence."""


def test_what_is_left_out() -> None:
    tests = {
        name: function
        for module in (test_event_channels, test_pages, test_xenstore)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("test_")
    }
    assert {name for name, function in tests.items() if not fitting(function)} == LEFT_OUT[HOST]
    assert not LEFT_OUT[True] & LEFT_OUT[False]

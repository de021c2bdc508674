"""Checks that each test of the suite runs in a world of this machine, or in one of the lab."""

from __future__ import annotations

import inspect
from typing import Final

from conformance import test_event_channels, test_pages, test_xenstore, test_xenstore_pyxs
from conformance.world import HOST, fitting

LEFT_OUT: Final = {
    False: {
        "test_a_bad_reference_leaves_nothing_exported",
        "test_a_dmabuf",
        "test_a_dmabuf_of_a_mapped_buffer",
        "test_closing_waits_until_the_dmabuf_is_released",
    },
    True: {
        "test_no_export_of_dmabufs_where_it_is_not_supported",
        "test_no_sharing_of_dmabufs_where_it_is_not_supported",
    },
}
"""Tests left out on the simulated Xen (False), which need the kernel's dma-bufs, and on the real Xen (True), which need their absence."""


def test_what_is_left_out() -> None:
    tests = {
        name: function
        for module in (test_event_channels, test_pages, test_xenstore, test_xenstore_pyxs)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("test_")
    }
    assert {name for name, function in tests.items() if not fitting(function)} == LEFT_OUT[HOST]
    assert not LEFT_OUT[True] & LEFT_OUT[False]

"""Connectors that exclude each other: the one that came first has the window. The guests cannot change that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from displbe.sinks.base import Claimant, DeviceConnector, OutputUnavailable
from displbe.sinks.window_queue import WindowQueue


def connector(domid: int, name: str, device: int = 0) -> DeviceConnector:
    return DeviceConnector(Claimant(domid, ""), device, 0, name, 64, 48)


CONNECTORS = [connector(domid, name, device) for domid in (1, 2) for device in (0, 1) for name in ("A", "B")]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(CONNECTORS)), max_size=40))
def test_the_first_of_each_name_is_open(steps: list[tuple[bool, DeviceConnector]]) -> None:
    opened: list[DeviceConnector] = []
    queue = WindowQueue(opened.append, opened.remove)
    there: list[DeviceConnector] = []
    for add, each in steps:
        if add and each not in there:
            queue.add(each)
            there.append(each)
        elif not add:
            queue.remove(each)
            there = [other for other in there if other != each]
        first = [next((other for other in there if other.name == name), None) for name in ("A", "B")]
        assert set(opened) == {each for each in first if each is not None}
        for name, holder in zip(("A", "B"), first, strict=True):
            for domid in (1, 2):
                if holder is not None and holder.claimant.domid == domid:
                    assert queue.find(name, domid) is holder
                    queue.check_open(holder)
                else:
                    with pytest.raises(OutputUnavailable):
                        queue.find(name, domid)


def test_reasons() -> None:
    queue = WindowQueue(lambda _: None, lambda _: None)
    with pytest.raises(OutputUnavailable, match="no device of this guest has a connector A"):
        queue.find("A", 1)
    queue.add(connector(1, "A"))
    queue.add(connector(2, "A"))
    with pytest.raises(OutputUnavailable, match="taken by another guest"):
        queue.find("A", 2)
    with pytest.raises(OutputUnavailable, match="taken by another guest"):
        queue.check_open(connector(2, "A"))

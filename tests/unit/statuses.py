"""Hypothesis strategies for any status of a daemon."""

from __future__ import annotations

from hypothesis import strategies as st

from displbe.ops.status import (
    Abilities,
    ConnectorStatus,
    DeviceStatus,
    FlipsStatus,
    Framebuffers,
    GuestStatus,
    InputStatus,
    Latency,
    Loop,
    PumpStatus,
    Refusal,
    Status,
    Usage,
)

__all__ = ["STATUS"]

TEXT = st.text(max_size=30)
SECONDS = st.sampled_from([0.0, 0.0004, 0.0166, 0.09999, 0.9999, 1.0, 9.9999, 99.99, 100.0, 5999.9, 359999.0, 1e9])
COUNT = st.integers(0, 2**64)
FLIPS = st.builds(
    FlipsStatus,
    COUNT,
    st.none() | SECONDS,
    st.floats(0, 1000),
    st.floats(0, 1000),
    st.none() | st.builds(Latency, SECONDS, SECONDS, SECONDS),
    st.booleans(),
    SECONDS,
    st.lists(st.integers(0, 1000), min_size=16, max_size=16).map(tuple),
)
PATH = st.sampled_from(["", "copy", "zero copy", "be-alloc"])
CONNECTOR = st.builds(
    ConnectorStatus,
    st.integers(0, 7),
    TEXT,
    TEXT,
    TEXT,
    PATH,
    TEXT,
    st.lists(st.builds(Framebuffers, PATH, TEXT, COUNT), max_size=3).map(tuple),
    st.booleans(),
    FLIPS,
    COUNT,
    COUNT,
    st.lists(st.builds(Refusal, TEXT, TEXT, COUNT), max_size=3, unique_by=lambda kind: (kind.request, kind.error)).map(
        tuple
    ),
    TEXT,
    SECONDS,
    COUNT,
    COUNT,
    SECONDS,
    COUNT,
)
STATES = st.sampled_from(["missing", "init_wait", "connected", "reconfiguring"])
DEVICE = st.builds(
    DeviceStatus,
    st.sampled_from(["vdispl", "vkbd"]),
    st.integers(0, 99),
    STATES,
    SECONDS,
    STATES,
    SECONDS,
    COUNT,
    COUNT,
    TEXT,
    SECONDS,
    st.lists(CONNECTOR, max_size=1).map(tuple),
    st.none()
    | st.builds(
        InputStatus,
        st.lists(TEXT, max_size=3).map(tuple),
        COUNT,
        COUNT,
        COUNT,
        st.lists(TEXT, max_size=3).map(tuple),
    ),
)
GUEST = st.builds(
    GuestStatus,
    st.integers(0, 0x7FEF),
    TEXT,
    st.dictionaries(st.sampled_from(["pages", "buffers"]), st.builds(Usage, COUNT, COUNT)),
    st.lists(DEVICE, max_size=1).map(tuple),
)
ANSWERS = st.dictionaries(TEXT, TEXT, max_size=1)
STATUS = st.builds(
    Status,
    st.just("0.1.0"),
    SECONDS,
    st.sampled_from(["drm", "wayland"]),
    st.builds(Usage, st.integers(0, 262144), st.integers(0, 262144)),
    st.dictionaries(st.sampled_from(["ports", "pages"]), COUNT),
    st.builds(Usage, COUNT, COUNT),
    st.builds(Loop, SECONDS, COUNT),
    st.builds(Abilities, ANSWERS, ANSWERS),
    TEXT,
    st.lists(GUEST, max_size=1).map(tuple),
    pump=st.builds(PumpStatus, st.sampled_from(["on", "off", "missing"]), TEXT),
)

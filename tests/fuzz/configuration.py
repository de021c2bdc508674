"""Fuzz target of the configuration: any bytes as a file, most of them configs/displbe.toml with a few lines changed."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from displbe.backend.quota import TokenBucket, Total
from displbe.config import ConfigError, Settings, decode, differences

from .choices import Choices

__all__ = ["LINES", "ODD", "SEEDS", "TARGETS", "config", "usable_or_error"]

EXAMPLE: Final = Path(__file__).parents[2] / "configs" / "displbe.toml"
LINES: Final = tuple(re.findall(r"^(?:# )?(\[.*\]|[a-z-]+ = .*)$", EXAMPLE.read_text("utf-8"), re.MULTILINE))
"""The example's tables and keys, also those that are commented out."""
ODD: Final = (
    *("nan", "-nan", "inf", "-inf", "-1", "0", "1e308", "5e-324", "-0.0", "true", "1.5", "1979-05-27T07:32:00Z", "07:32:00"),
    *("9" * 4000, "9" * 5000, "0x" + "f" * 4000, str(1 << 63), str(1 << 32), str((1 << 32) - 1), "''", "'/'", "'..'", "{}"),
    *("[" * 4000, "[" * 900 + "]" * 900, "{a = " * 800, "[[], {}, 1, 'a', nan]", "['', '']", "['a', 'a']", "[1]", "{a.b.c = 1}"),
    *('"{guest.name}"', '"{guest[0]}"', '"{guest!r}"', '"{guest:>999999999999}"', '"{guest:{connector}}"', '"{"', '"}"', '"{}"'),
    *('"{0}"', '"{{guest}}"', f'"{"{guest}" * 100}"', '"a\\u0000b"', '"a\\nb"', '"\\u202e"', '"\\U0010ffff"', f'"{"x" * 3000}"'),
    *("'[::1]:80'", "'[]:80'", "'a:99999'", f"'a:{'9' * 3000}'", "'a..b:80'", "'x:\u0661\u0662'", "':0.7'", "':\u0661'", "'/run/x'"),
)  # fmt: skip
"""Values that are wrong for most keys, and right for some."""
LONGEST: Final = "\U0010ffff" * 64
"""The longest name of a guest or a connector in a title."""


def config(data: bytes) -> None:
    """Fuzz a configuration: it is refused with one printable line, or its values can be used."""
    choices = Choices(data)
    if not choices.below(4):
        content = data[1:]
    else:
        lines = list(LINES)
        for _ in range(1 + choices.below(3)):
            at = choices.below(len(lines))
            key, kind = lines[at].partition("=")[0], choices.below(len(ODD) + 8)
            value = ODD[kind].encode() if kind < len(ODD) else choices.number(8).to_bytes(8, "little")
            lines[at] = f"{key}= {value.decode('utf-8', 'surrogateescape')}"
        content = "\n".join(lines).encode("utf-8", "surrogateescape")
    usable_or_error(content)


def usable_or_error(content: bytes) -> None:
    """Check that a file is refused with one printable line, or that its values can be used."""
    try:
        settings = decode(content)
    except ConfigError as error:
        line = str(error)
    else:
        check_usable(settings)
        return
    assert line.isprintable()
    assert 0 < len(line) < 8 * 512


def check_usable(settings: Settings) -> None:
    """Use settings as the daemon does."""
    assert differences(settings, settings) == []
    differences(Settings(), settings)
    msgspec.json.encode(settings)
    for table in msgspec.structs.fields(Settings):
        for text in _texts(getattr(settings, table.name)):
            assert b"\0" not in os.fsencode(text)
    assert settings.drm.screen("card1/HDMI-A-1", "HDMI-A-1").connected in ("auto", "always")
    assert Total(settings.xen.maptrack, 2).limit >= 0
    limits = settings.limits
    for rate in (limits.requests_per_second, limits.modesets_per_second, limits.reconnects_per_second):
        bucket = TokenBucket(rate, rate, lambda: 0.0)
        assert math.isfinite([bucket.take(rate), bucket.take(8)][1])
        assert bucket.take() > 0
    for template in (settings.wayland.title, settings.wayland.app_id):
        assert len(template.format(guest=LONGEST, connector=LONGEST).encode()) <= 2048
    for hertz in (settings.headless.refresh, settings.x11.refresh):
        assert 1 / hertz <= 1
    for hertz in (settings.drm.refresh, settings.wayland.refresh, settings.input.repeat_rate):
        assert not hertz or 0 < 1 / hertz <= threading.TIMEOUT_MAX


def _texts(value: object) -> list[str]:
    """Return all texts in a table."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {"config": config}

SEEDS: Final[dict[str, tuple[bytes, ...]]] = {
    "config": (
        b"\0" + "\n".join(LINES).encode(),
        *(bytes((1, 0, line, kind)) for kind in range(len(ODD)) for line in (kind % len(LINES), -kind % len(LINES))),
    )
}

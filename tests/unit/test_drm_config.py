"""configs/displbe.toml has every key, with its default; wrong values of `[drm]` are refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from displbe.config import ConfigError, Settings, load

FILE = Path(__file__).parents[2] / "configs" / "displbe.toml"


def test_example_is_the_defaults() -> None:
    """The example has all tables and keys, with their defaults."""
    assert load(str(FILE)) == Settings()
    written = tomllib.loads(FILE.read_text())
    defaults = msgspec.to_builtins(Settings())
    assert {**written, "guest": {}} == defaults


@pytest.mark.parametrize(
    "wrong",
    [
        "refresh = 121",
        "refresh = -1",
        'scale = "big"',
        'on-exit = "explode"',
        "on_exit = 1",
        'seat = "seat0"',
        'zero-copy = "yes"',
    ],
)
def test_wrong_values(tmp_path: Path, wrong: str) -> None:
    """A wrong value is refused, and the error names the key's path."""
    (tmp_path / "displbe.toml").write_text(f"[drm]\n{wrong}\n")
    with pytest.raises(ConfigError, match=r"\$\.drm"):
        load(str(tmp_path / "displbe.toml"))


def test_screens(tmp_path: Path) -> None:
    """A screen has the general keys, and those of the first of its names that has a table."""
    file = tmp_path / "displbe.toml"
    file.write_text('[drm.screens]\nconnected = "always"\n[drm.screens."card1/DP-1"]\nconnected = "auto"\n')
    drm = load(str(file)).drm
    assert drm.screen("HDMI-A-1").connected == "always"
    assert drm.screen("edid:DEL-A0B1", "card1/DP-1", "DP-1").connected == "auto"
    file.write_text('[drm.screens.HDMI-A-1]\nconnected = "always"\n')
    drm = load(str(file)).drm
    assert (drm.screen("HDMI-A-1").connected, drm.screen("DP-1").connected) == ("always", "auto")
    file.write_text('[drm.screens."edid:DEL-A0B1"]\nconnected = "always"\n')
    assert load(str(file)).drm.screen("edid_DEL-A0B1").connected == "always", "as xl writes the name"


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ('[drm.screens]\nconnected = "maybe"', "screens: Invalid enum value 'maybe' - at `$.connected` - at `$.drm`"),
        ('[drm.screens]\nconected = "auto"', "screens: Object contains unknown field `conected` - at `$.drm`"),
        (
            "[drm.screens.DP-1]\nconnected = 1",
            "screens.DP-1: Expected `str`, got `int` - at `$.connected` - at `$.drm`",
        ),
        ("[drm.screens.DP-1.mode]\nx = 1", "screens.DP-1: Object contains unknown field `mode` - at `$.drm`"),
        ("[drm.screens.connected]", "screens.connected is a key, and no screen has this name - at `$.drm`"),
        ("[drm]\nscreens = 1", "Expected `object`, got `int` - at `$.drm.screens`"),
    ],
)
def test_wrong_screens(tmp_path: Path, lines: str, place: str) -> None:
    (tmp_path / "displbe.toml").write_text(f"{lines}\n")
    with pytest.raises(ConfigError) as error:
        load(str(tmp_path / "displbe.toml"))
    assert place in str(error.value)

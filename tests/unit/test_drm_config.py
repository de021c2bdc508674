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

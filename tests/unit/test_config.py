"""The configuration: every key, and errors that name the place in the file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from displbe.backend.guests import GuestSettings
from displbe.config import ConfigError, Settings, load
from displbe.ops.settings import LogSettings
from displbe.sinks.headless.settings import HeadlessSettings

CONFIGS = Path(__file__).parents[2] / "configs"


def written(folder: Path, text: str | bytes) -> str:
    """Return a configuration file."""
    path = folder / "displbe.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(written(tmp_path, "")) == Settings()


def test_every_table(tmp_path: Path) -> None:
    settings = load(
        written(
            tmp_path,
            """
            sink = "headless"
            [log]
            format = "json"
            level = "debug"
            [xen]
            store = "/dev/xen/xenbus"
            [limits]
            pages = 1000
            buffers = 2
            modesets-per-second = 0.5
            [headless]
            refresh = 30
            directory = "/tmp/pictures"
            outputs = ["HDMI-A-1", "1000"]
            [drm]
            device = "/dev/dri/card1"
            zero-copy = "require"
            [guest."my guest"]
            connectors = ["HDMI-A-1"]
            be-alloc = true
            """,
        )
    )
    assert settings.sink == "headless"
    assert settings.log == LogSettings("json", "debug")
    assert settings.xen.store == "/dev/xen/xenbus"
    assert (settings.limits.pages, settings.limits.buffers, settings.limits.framebuffers) == (1000, 2, 128)
    assert settings.headless == HeadlessSettings(30.0, "/tmp/pictures", ["HDMI-A-1", "1000"])
    assert (settings.drm.device, settings.drm.zero_copy) == ("/dev/dri/card1", "require")
    assert settings.guest == {"my guest": GuestSettings(["HDMI-A-1"], True)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sink = 'wayand'", "$.sink"),
        ("sinks = 'drm'", "sinks"),
        ("[headless]\nrefresh = 'fast'", "$.headless.refresh"),
        ("[headless]\nrefresh = 0.5", "refresh is a number of refreshes per second"),
        ("[headless]\nrefresh = 1e9", "refresh is a number of refreshes per second"),
        ("[headless]\nrefresh = nan", "refresh is a number of refreshes per second"),
        ("[headless]\noutputs = 'HDMI-A-1'", "$.headless.outputs"),
        ("[headless]\noutput = []", "output"),
        ("[limits]\npages = -1", "pages"),
        ("[limits]\npages = 1.5", "$.limits.pages"),
        ("[limits]\nrequests-per-turn = 0", "requests-per-turn"),
        ("[limits]\nrequests_per_turn = 1", "requests_per_turn"),
        ("[drm]\nzero-copy = true", "$.drm.zero-copy"),
        ("[wayland]\nrefresh = 1000", "refresh is a number of looks per second"),
        ("[wayland]\ntitle = '{domain}'", "only {guest} and {connector}"),
        ("[wayland.surfaces]\na = -1", "ivi ids"),
        ("[wayland.surfaces]\na = 1\nb = 1", "no two connectors"),
        ("[guest.a]\nconnector = []", "connector"),
        ("[log]\nlevel = 'loud'", "$.log.level"),
        ("sink = \n", "line 1"),
        (b"\xff", "decode"),
    ],
)
def test_an_error_names_the_file_and_the_place(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere\\.toml: No such file"):
        load(str(tmp_path / "nowhere.toml"))
    with pytest.raises(ConfigError, match="Is a directory"):
        load(str(tmp_path))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_the_examples_are_right(path: Path) -> None:
    load(str(path))


def test_every_key_has_its_lines_in_the_example() -> None:
    example = CONFIGS / "displbe.toml"
    text = example.read_text("utf-8")
    for field in msgspec.structs.fields(Settings):
        if isinstance(field.default, msgspec.Struct):
            assert f"[{field.encode_name}]" in text
            for key in msgspec.structs.fields(field.default):
                assert key.encode_name in text, f"[{field.encode_name}] {key.encode_name}"

"""The configuration: every key, and errors that name the place in the file."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import msgspec
import pytest
from fuzz.configuration import LINES, ODD, config, usable_or_error
from hypothesis import given
from hypothesis import strategies as st

from displbe.backend.guests import GuestSettings
from displbe.backend.quota import Limits
from displbe.config import MAX_FILE, MAX_LINE, ConfigError, Settings, decode, load
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
        ("[wayland]\ntitle = '{guest.name}'", "only {guest} and {connector}"),
        ("[wayland]\ntitle = '{guest[0]}'", "only {guest} and {connector}"),
        ("[wayland]\ntitle = '{guest!r}'", "only {guest} and {connector}"),
        ("[wayland]\ntitle = '{guest:>999999999999}'", "only {guest} and {connector}"),
        ("[wayland]\ntitle = '{guest:99999}'", "only {guest} and {connector}"),
        ("[wayland]\ntitle = '{guest:{connector}}'", "only {guest} and {connector}"),
        ("[wayland]\ntitle = '{'", "only {guest} and {connector}"),
        ("[wayland]\napp-id = '{}'", "only {guest} and {connector}"),
        (f"[wayland]\ntitle = '{'{guest}' * 20}'", "more than 2048 bytes"),
        ("[wayland]\ntitle = '" + "x" * 2049 + "'", "more than 2048 bytes"),
        ("[wayland]\ndisplay = '" + "x" * 1025 + "'", "more than 1024 bytes - at `$.wayland.display`"),
        (
            '[wayland]\ndisplay = "a\\u0000b"',
            "control character, such as a line break or NUL, is in the text - at `$.wayland.display`",
        ),
        ('[input]\ndevices = ["a", "b\\n"]', "at `$.input.devices[1]`"),
        ('[guest."a\\nb"]', "control character"),
        ('"a\\nb" = 1', "unknown field `a\\nb`"),
        ("a = " + "[" * 4000, "nested too deep"),
        ("a = " + "{a = " * 800, "nested too deep"),
        ("[limits]\npages = " + "9" * 4050, "pages must be a number from 0 to 4294967295"),
        ("a = [\n" + "9" * 4096 + "]", "line 2 has more than 4096 bytes"),
        ("a." * MAX_LINE + "a = 1", "line 1 has more than 4096 bytes"),
        ("#\n" * MAX_FILE, f"larger than {MAX_FILE} bytes"),
        ("[limits]\nrequests-per-second = nan", "requests-per-second must be a number from 0.001 to 1000000000"),
        ("[limits]\nmodesets-per-second = inf", "modesets-per-second"),
        ("[limits]\nreconnects-per-second = 5e-324", "reconnects-per-second"),
        ("[limits]\nrequests-per-second = true", "$.limits.requests-per-second"),
        ("[limits]\nrequests-per-second = 0x" + "f" * 400, "out of range"),
        ("[xen]\nmaptrack = 0x" + "f" * 400, "maptrack must be a number of pages"),
        ("[xen]\nmaptrack = -1", "maptrack must be a number of pages"),
        ("[input]\nrepeat-rate = nan", "repeat-rate"),
        ("[drm]\nrefresh = 5e-324", "refresh is a number of looks per second"),
        ("[wayland]\nrefresh = 1e-300", "refresh is a number of looks per second"),
        ("[input]\nrepeat-rate = 5e-324", "repeat-rate"),
        ("[metrics]\ninterval = nan", "interval"),
        ("[metrics]\nlisten = 'a:" + "9" * 4050 + "'", "HOST:PORT"),
        ("[metrics]\nlisten = '[]:80'", "HOST:PORT"),
        ("[metrics]\nlisten = 'a..b:80'", "HOST:PORT"),
        ("[metrics]\ntextfile = '/'", "textfile must be the path of a file"),
        ("[metrics]\nsocket = '/run/displbe/control'", "must be different paths"),
        ("[x11]\ndisplay = 'screen'", "display must be like $DISPLAY"),
        ("[x11]\ndisplay = ':\u0661'", "display must be like $DISPLAY"),
        ("[guest.a]\ninput = 'keyboard'", "guest.a.input: "),
        ("[guest.a]\nconnectors = ['']", "connectors must be names"),
        ("[guest.a]\nconnectors = ['A', 'A']", "names an output twice"),
        ("[guest.'']", "needs the guest's name"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_an_error_names_the_file_and_the_place(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert str(error.value).isprintable()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere\\.toml: No such file"):
        load(str(tmp_path / "nowhere.toml"))
    with pytest.raises(ConfigError, match="Is a directory"):
        load(str(tmp_path))


def test_a_number_of_5000_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("displbe.config.MAX_LINE", 10_000)  # the line alone would be refused
    with pytest.raises(ConfigError, match=r"a value cannot be read: Exceeds the limit .* value has 5000 digits$"):
        decode(b"a = " + b"9" * 5000)


def test_a_file_that_is_no_file(tmp_path: Path) -> None:
    """Reading ends, and without a wait for a writer of the FIFO."""
    os.mkfifo(tmp_path / "fifo")
    for path in (str(tmp_path / "fifo"), "/dev/zero"):
        with pytest.raises(ConfigError, match=f"{path}: it is not a regular file"):
            load(path)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        load(str(loop))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read any file, so the refusal is the test's."""
    path = written(tmp_path, "")

    def refuse(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        load(path)


def test_braces_and_other_texts_that_are_right(tmp_path: Path) -> None:
    shown = "{{{guest}}} – {connector} {connector}"
    settings = load(
        written(tmp_path, f"[wayland]\ntitle = '{shown}'\n[x11]\ndisplay = ':0.1'\n[metrics]\nlisten = '[::1]:80'\n")
    )
    assert settings.wayland.title.format(guest="a", connector="b") == "{a} – b b"


@pytest.mark.parametrize(
    "value", ["nan", "-nan", "inf", "-inf", "-1", "-1e300", "0x" + "f" * 1000, "true", "'1'", "1979-05-27"]
)
def test_no_number_is_odd(value: str) -> None:
    """No key that is a number takes any of these values."""
    tried = 0
    for table in msgspec.structs.fields(Settings):
        for key in msgspec.structs.fields(table.default) if isinstance(table.default, msgspec.Struct) else ():
            if key.type in (int, float):
                tried += 1
                with pytest.raises(ConfigError, match=key.encode_name):
                    decode(f"[{table.encode_name}]\n{key.encode_name} = {value}\n".encode())
    assert tried >= 17


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_limits_check_themselves(rate: float) -> None:
    for name in ("requests_per_second", "modesets_per_second", "reconnects_per_second"):
        with pytest.raises(ValueError, match="must be a number from"):
            Limits(**{name: rate})  # type: ignore[arg-type]


@given(st.binary(max_size=300))
def test_any_bytes_are_settings_or_an_error(data: bytes) -> None:
    config(b"\0" + data)
    config(data)


_LINES = st.sampled_from(LINES)
_CHANGED = st.builds(
    lambda line, value: f"{line.partition('=')[0]}= {value}",
    _LINES,
    st.one_of(st.sampled_from(ODD), st.floats().map(str), st.integers().map(str), st.text(max_size=20)),
)


@given(st.lists(st.one_of(_LINES, _CHANGED), max_size=12))
def test_any_lines_are_settings_or_an_error(lines: list[str]) -> None:
    usable_or_error("\n".join(lines).encode("utf-8", "surrogatepass"))


@given(st.sampled_from(["wayland", "guest.a"]), st.text(max_size=40), st.sampled_from(["title", "app-id", "input"]))
def test_any_text_is_usable_or_an_error(table: str, text: str, key: str) -> None:
    document = f"[{table}]\n{key} = {msgspec.json.encode(text.encode('utf-8', 'replace').decode()).decode()}\n"
    usable_or_error(document.encode())


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

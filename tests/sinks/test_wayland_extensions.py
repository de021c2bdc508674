"""Optional protocols of desktop compositors: fractional scale, decorations, inhibitors of idleness and shortcuts."""

from __future__ import annotations

from typing import Any

import pytest
import structlog.testing
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from sinks.compositor import CORE, DESKTOP, Client, FakeCompositor, Surface
from sinks.test_wayland import GUEST, HEIGHT, WHOLE, WIDTH, Stage, connection_of, on_screen, staged, until

from displbe.sinks.base import Part
from displbe.sinks.wayland.inhibitors import ShortcutsState
from displbe.sinks.wayland.output import WaylandOutput

CLIENT_SIDE, SERVER_SIDE = 1, 2
CTRL, ALT, TAB = 29, 56, 15
MAXIMIZED, FULLSCREEN = 1, 2
ACTIVATED = 4


def on_monitor(surface: Surface, scale: int) -> tuple[int, int]:
    """The pixels of a monitor that a toplevel covers: "the size is rounded halfway away from zero"."""
    width, height = (int(length * scale / 120 + 0.5) for length in surface.size)
    return width, height


async def show(stage: Stage, width: int, height: int) -> WaylandOutput:
    """Show a framebuffer of this size."""
    output = stage.claim("window")
    await stage.connected()
    buffer = await stage.attach(output, width=width, height=height, stride=4 * width)
    await output.enable(buffer, Part(0, 0, width, height))
    await on_screen(output)
    return output


async def settled(output: WaylandOutput) -> None:
    """Wait until the compositor has handled all requests, and the client all events before."""
    await connection_of(output).sync()
    await connection_of(output).sync()


async def test_a_window_has_the_pixels_of_its_guest() -> None:
    """1280x800 at 1.5 are 853x533 units, which are 1280x800 pixels, also when the compositor asks for what it sees. A new scale follows."""
    compositor = FakeCompositor(DESKTOP)
    compositor.scale = 180
    async with staged(compositor) as stage:
        output = await show(stage, 1280, 800)
        surface = stage.surface
        assert surface.size == (853, 533)
        assert on_monitor(surface, 180) == (1280, 800)
        assert surface.source is None
        compositor.client.configure(surface, 853, 533, (ACTIVATED,))
        await settled(output)
        assert surface.size == (853, 533)
        for scale, size in ((120, (1280, 800)), (240, (640, 400)), (150, (1024, 640)), (180, (853, 533))):
            compositor.rescale(scale)
            await until(lambda size=size: surface.size == size)  # type: ignore[misc]
            assert on_monitor(surface, scale) == (1280, 800)
        compositor.client.configure(surface, 400, 300, (ACTIVATED,))  # its user has resized it
        await until(lambda: surface.size == (400, 250))
        compositor.rescale(240)
        await settled(output)
        assert surface.size == (400, 250)


@pytest.mark.parametrize("scale", [0, 1, 119, 120 * 64 + 1, 2**32 - 1])
async def test_scales_that_are_not_believed(scale: int) -> None:
    """Whatever the compositor says, the surface has a size, and the connection stays."""
    compositor = FakeCompositor(DESKTOP)
    compositor.scale = scale
    async with staged(compositor) as stage:
        await stage.lit()
        assert min(stage.surface.size) >= 1
        assert len(compositor.clients) == 1


async def test_a_full_screen_without_a_black_edge() -> None:
    """A guest of the monitor's resolution fills the monitor of any scale, although its size in units has another aspect ratio."""
    for offers in (DESKTOP, CORE):  # also where the compositor does not tell the scale
        compositor = FakeCompositor(offers)
        compositor.scale = 180
        compositor.first_size = (853, 533, (FULLSCREEN,))
        async with staged(compositor) as stage:
            await show(stage, 1280, 800)
            assert stage.surface.size == (853, 533)


async def test_logical_pixels() -> None:
    """`pixels = "logical"`: a window is as large as on a monitor that is not scaled; a full screen is exact nevertheless."""
    compositor = FakeCompositor(DESKTOP)
    compositor.scale = 180
    async with staged(compositor, pixels="logical") as stage:
        await show(stage, 1280, 800)
        assert stage.surface.size == (1280, 800)
        compositor.client.configure(stage.surface, 853, 533, (FULLSCREEN,))
        await until(lambda: stage.surface.size == (853, 533))


async def test_scale_without_viewporter() -> None:
    """Without a viewport, a surface has the size of its buffer, and no scale is asked for."""
    compositor = FakeCompositor({name: version for name, version in DESKTOP.items() if name != "wp_viewporter"})
    compositor.scale = 180
    async with staged(compositor) as stage:
        await stage.lit()
        assert stage.surface.size == (WIDTH, HEIGHT)
        assert not stage.surface.scaler


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    events=st.lists(
        st.tuples(
            st.integers(60, 480),
            st.sampled_from([(0, 0), (853, 533), (100, 75), (1, 1)]),
            st.sampled_from([(), (ACTIVATED,), (MAXIMIZED,), (FULLSCREEN,)]),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_any_scale_and_size(
    width: int, height: int, events: list[tuple[int, tuple[int, int], tuple[int, ...]]]
) -> None:
    """The simulated compositor's rules for sizes hold; a window that may have any size has its guest's pixels where units allow it."""

    async def play() -> None:
        compositor = FakeCompositor(DESKTOP)
        async with staged(compositor) as stage:
            output = await show(stage, width, height)
            for scale, asked, states in events:
                compositor.rescale(scale)
                compositor.client.configure(stage.surface, *asked, states if asked[0] else ())
                await settled(output)
                await settled(output)
                assert len(compositor.clients) == 1
                if asked == (0, 0):
                    assert surface_is_exact(stage.surface, (width, height), scale)

    trio.run(play)


def surface_is_exact(surface: Surface, picture: tuple[int, int], scale: int) -> bool:
    """Whether no length in units is nearer to the picture's length in pixels."""
    for made, wanted in zip(surface.size, picture, strict=True):
        errors = [abs(int(length * scale / 120 + 0.5) - wanted) for length in range(max(1, made - 3), made + 4)]
        if abs(int(made * scale / 120 + 0.5) - wanted) != min(errors):
            return False
    return True


# Decorations


@pytest.mark.parametrize(
    ("setting", "enforced", "wanted"),
    [
        ("auto", 0, SERVER_SIDE),
        ("server", 0, SERVER_SIDE),
        ("none", 0, CLIENT_SIDE),
        ("auto", CLIENT_SIDE, SERVER_SIDE),
    ],
)
async def test_decorations(setting: str, enforced: int, wanted: int) -> None:
    """The compositor is asked for title bars before the first frame, and each time that the window is opened. It decides."""
    compositor = FakeCompositor(DESKTOP)
    compositor.decorates = enforced
    async with staged(compositor, decorations=setting) as stage:
        output, first, _ = await stage.lit()
        assert stage.surface.wanted_decoration == wanted
        assert stage.surface.decorated == (enforced or wanted)
        await output.disable()
        await output.enable(first, WHOLE)
        await on_screen(output)
        assert stage.surface.wanted_decoration == wanted
        assert compositor.client.error is None


# Idleness


async def test_idle() -> None:
    """The screens stay on while the guest's screen is on, if the configuration says so."""
    compositor = FakeCompositor(DESKTOP)
    async with staged(compositor, inhibit_idle=True) as stage:
        output, first, second = await stage.lit()
        for _ in range(3):
            assert compositor.client.awake == [stage.surface.number]
            await stage.flip(output, second, len(stage.flipped))
            await output.disable()
            await until(lambda: not compositor.client.awake)
            await output.enable(first, WHOLE)
            await on_screen(output)
        compositor.crash()
        compositor.there = True
        await until(lambda: any(client.awake for client in compositor.clients if not client.closed))


async def test_no_guest_keeps_the_screens_on_by_itself() -> None:
    """By default, neither idleness nor shortcuts are inhibited, whatever the guest does."""
    compositor = FakeCompositor({**DESKTOP, "wl_seat": 8})
    async with staged(compositor) as stage:
        assert stage.sink.seats is not None
        with stage.sink.seats.listening(GUEST.domid, "HDMI-A-1", lambda event: None):
            output, _, second = await stage.lit()
            await stage.flip(output, second, 1)
            assert not compositor.client.awake
            assert not compositor.client.shortcuts


# Shortcuts


class Keys:
    """A guest that takes the keyboard, or does not, and a compositor with a seat."""

    def __init__(self, stage: Stage, output: WaylandOutput) -> None:
        self.stage = stage
        self.output = output
        self.client: Client = stage.compositor.client

    @property
    def states(self) -> list[ShortcutsState]:
        extensions = self.output.surface.extensions
        assert extensions is not None
        assert extensions._shortcuts is not None
        return list(extensions._shortcuts.states.values())

    async def tell(self, name: str) -> None:
        """Send an event of the inhibitor."""
        (number,) = self.client.shortcuts.values()
        self.client.event(number, name)
        await settled(self.output)


async def test_shortcuts() -> None:
    """A guest that takes the keyboard gets the compositor's shortcuts, from all seats, until the compositor's user takes them back."""
    compositor = FakeCompositor({**DESKTOP, "wl_seat": 8})
    place = len(compositor.offers)
    async with staged(compositor, inhibit_shortcuts=True) as stage:
        output, first, _ = await stage.lit()
        keys, seats = Keys(stage, output), stage.sink.seats
        assert seats is not None
        assert not keys.client.shortcuts, "the guest takes no keys"
        with seats.listening(GUEST.domid, "HDMI-A-1", lambda event: None, keyboard=False):
            await settled(output)
            assert not keys.client.shortcuts
            with seats.listening(GUEST.domid, "HDMI-A-1", lambda event: None):
                await until(lambda: keys.states == [ShortcutsState.ACTIVE])
                await keys.tell("inactive")
                assert keys.states == [ShortcutsState.INACTIVE]
                await keys.tell("active")
                assert keys.states == [ShortcutsState.ACTIVE]
                compositor.remove(place)
                await until(lambda: not keys.client.shortcuts)
                for number in (1, 2):
                    compositor.add("wl_seat", 8)
                    await until(lambda number=number: keys.states == [ShortcutsState.ACTIVE] * number)  # type: ignore[misc]
                await output.disable()
                await output.enable(first, WHOLE)
                await on_screen(output)
                await until(lambda: len(keys.client.shortcuts) == 2)
            await until(lambda: not keys.client.shortcuts)
        assert compositor.client.error is None


async def test_the_way_out_of_a_guest_that_has_the_shortcuts() -> None:
    """Left Ctrl and left Alt, pressed and released together, give the compositor its shortcuts back. So does nothing else."""
    compositor = FakeCompositor({**DESKTOP, "wl_seat": 8})
    async with staged(compositor, inhibit_shortcuts=True) as stage:
        output, *_ = await stage.lit()
        client, number = compositor.client, stage.surface.number
        assert stage.sink.seats is not None
        with stage.sink.seats.listening(GUEST.domid, "HDMI-A-1", lambda event: None):
            await until(lambda: client.of("wl_keyboard") and client.of("wl_pointer") and client.shortcuts)
            keyboard, pointer = client.device("wl_keyboard"), client.device("wl_pointer")

            async def keys(*codes: int) -> None:
                """Press keys, and release them: a negative code."""
                for code in codes:
                    client.event(keyboard, "key", 1, 0, abs(code), int(code > 0))
                await settled(output)

            client.event(keyboard, "enter", 1, number, b"")
            client.event(pointer, "enter", 1, number, 1.0, 1.0)
            await keys(CTRL, ALT, -ALT, -CTRL)
            assert not client.shortcuts
            await keys(CTRL, ALT, -CTRL, -ALT)
            assert client.shortcuts, "the same again"
            await keys(CTRL, ALT, TAB, -TAB, -ALT, -CTRL)
            await keys(CTRL, -CTRL, ALT, -ALT)
            await keys(CTRL, ALT)
            client.event(pointer, "button", 1, 0, 0x110, 1)
            await keys(-CTRL, -ALT)
            assert client.shortcuts
            await keys(ALT, CTRL, -ALT, -CTRL)
            assert not client.shortcuts
            client.event(keyboard, "leave", 2, number)
            await settled(output)
            assert not client.shortcuts
            client.event(keyboard, "enter", 3, number, b"")
            await settled(output)
            assert client.shortcuts, "the window has the keyboard anew"


async def test_a_compositor_that_keeps_its_shortcuts() -> None:
    """The log says so once, when the guest has the keyboard and lacks the shortcuts."""
    compositor = FakeCompositor({**DESKTOP, "wl_seat": 8})
    compositor.yields_shortcuts = False
    with structlog.testing.capture_logs() as logs:
        async with staged(compositor, inhibit_shortcuts=True) as stage:
            output, *_ = await stage.lit()
            assert stage.sink.seats is not None
            with stage.sink.seats.listening(GUEST.domid, "HDMI-A-1", lambda event: None):
                await until(lambda: compositor.client.of("wl_keyboard") and compositor.client.shortcuts)
                assert not [entry for entry in logs if entry["event"] == "the compositor keeps its shortcuts"]
                for serial in range(3):
                    keyboard = compositor.client.device("wl_keyboard")
                    compositor.client.event(keyboard, "enter", serial, stage.surface.number, b"")
                    await settled(output)
    (said,) = [entry for entry in logs if entry["event"] == "the compositor keeps its shortcuts"]
    assert "allow it" in said["reason"]


# What is not offered


@pytest.mark.parametrize(
    ("option", "missing"),
    [
        ({"inhibit_shortcuts": True}, "zwp_keyboard_shortcuts_inhibit_manager_v1"),
        ({"inhibit_idle": True}, "zwp_idle_inhibit_manager_v1"),
        ({"decorations": "server"}, "zxdg_decoration_manager_v1"),
    ],
)
async def test_an_option_without_effect(option: dict[str, Any], missing: str) -> None:
    """Log and status name the option, the reason and the way out. The guest is shown all the same."""
    (name,) = option
    for offered in (False, True):
        compositor = FakeCompositor(DESKTOP if offered else CORE)
        with structlog.testing.capture_logs() as logs:
            async with staged(compositor, **option) as stage:
                await stage.lit()
                abilities = stage.sink.abilities()
        said = [entry["reason"] for entry in logs if entry["event"] == "option without effect"]
        told = [text for key, text in abilities.items() if key == f"option {name.replace('_', '-')}"]
        assert len(said) == len(told) == (0 if offered else 1)
        for text in (*said, *told):
            assert missing in text
            assert "use a compositor that offers it" in text

"""One connector of a guest as a surface of the compositor.

One commit per flip. The flip is over when the compositor says that the frame is on the screen (wp_presentation, or the frame
callback where there is none) and has let go of the frame before, which the guest draws into next. A surface that nobody sees hears
nothing: its flips are completed by a timer at the screen's rate, and so are those of a guest whose compositor is not there, or
stands still. Such a compositor is sent no more than it answers.

Where the guest's pages are copied, that happens in a thread, and the commit follows.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from displbe.sinks.base import Allocation, Geometry, Output, Part, SinkBuffer, SinkError
from displbe.sinks.copier import Copier
from displbe.sinks.seat import SeatEvent
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc_name
from displbe.xen.port import GuestBuffer

from .buffers import WaylandBuffer, can_copy
from .conn import Proxy
from .copies import Copies, Copy
from .window import NoRole, Window

if TYPE_CHECKING:
    from .client import Client
    from .session import Session

__all__ = ["WaylandOutput", "ivi_id"]

LATE: Final = 0.2
"""Seconds after which a flip of which the compositor says nothing is completed by us; the surface counts as hidden then."""
ATTACH_PATIENCE: Final = 1.0
"""Seconds that a guest waits for the compositor to take its buffer; its answer is due after 3 s."""
RELEASE_PATIENCE: Final = 4.0
"""Seconds that a guest waits for a compositor that stands still to let go of its pages: it gives up itself after 3 s."""
SLOWEST_LOOK: Final = 0.2
"""Seconds between looks at a frame that has not changed for a while."""
SAY_AGAIN: Final = 10.0
"""Seconds before the same thing is logged again: it may be the guest that makes it happen."""


class _Commit:
    """A frame that the surface was given. `said_by` tells what became of it."""

    def __init__(self, serial: int, said_by: Proxy) -> None:
        self.serial = serial
        """The flip that it belongs to."""
        self.said_by = said_by


class WaylandOutput(Output):
    """A claimed connector."""

    def __init__(self, client: Client, name: str, width: int, height: int) -> None:
        super().__init__(name)
        self.buffers: set[WaylandBuffer] = set()
        self.dark = "off"
        """Why nothing of the guest's is on the surface; empty: it is."""
        self.shown = 0
        """Frames that the compositor has shown."""
        self.late = 0
        """Flips of which it said nothing in time."""
        self._client = client
        self._settings = client.settings
        self._resolution = (width, height)
        self._log: Any = structlog.get_logger("displbe.wayland").bind(connector=name, domid=client.claimant.domid)
        self._said: dict[tuple[str, str], float] = {}
        self._window: Window | None = None
        self._detached = False
        self._current: WaylandBuffer | None = None
        self._part: Part | None = None
        self._attached: WaylandBuffer | Copy | None = None
        """What the surface was given last."""
        self._viewport: tuple[Part | None, tuple[int, int]] | None = None
        self._size = (width, height)
        self._token: int | None = None
        self._serial = 0
        self._since = 0.0
        self._timed = False
        self._seen = False
        self._old: WaylandBuffer | None = None
        self._last: _Commit | None = None
        self._unseen = False
        """The compositor has said nothing of the last commit."""
        self._hidden = False
        self._owed = False
        """The newest frame is kept back until the compositor answers."""
        self._probing = False
        self._watching = trio.CancelScope()
        self._copies: Copies | None = None
        self._old_copies: list[Copies] = []
        """Of another shape: one of them may be on the screen until the next commit."""
        self._copier: Copier | None = None
        self._no_copy_free = False
        # Held by whoever reads guests' pages in a thread, and by who takes them away.
        self._reading = trio.Lock()

    # Buffers

    async def attach(self, buffer: GuestBuffer, geometry: Geometry) -> SinkBuffer:
        session = self._client.session
        if session is not None and not can_copy(session, geometry.fourcc):
            raise SinkError(Errno.EINVAL, f"format {fourcc_name(geometry.fourcc)} cannot be shown here")
        made = WaylandBuffer(buffer, geometry, self._remove)
        self.buffers.add(made)
        if session is not None:
            self._client.look()
            try:
                with trio.move_on_after(ATTACH_PATIENCE):
                    await made.settled.wait()
            except BaseException:
                with trio.CancelScope(shield=True):
                    await made.aclose()
                raise
            if made.failure is not None:
                self.buffers.discard(made)
                raise made.failure
        return made

    def settled(self, buffer: WaylandBuffer) -> None:
        """The compositor has taken a buffer, on this connection."""
        if buffer.wl is not None:
            conn = self._client.conn

            def on_release() -> None:
                buffer.busy = False
                if self._old is buffer:
                    self._old = None
                    self._perhaps_complete()

            conn.on(buffer.wl, "release", on_release)
        self._say("framebuffer attached", buffer.reason, path=buffer.path, way=buffer.way, level="info")
        buffer.settled.set()
        if buffer is self._current:
            self._show()

    def refused(self, buffer: WaylandBuffer, error: SinkError) -> None:
        """The compositor cannot show a buffer at all; the guest, which may have waited for that or not, hears it once more at `enable`."""
        buffer.failure = error
        buffer.settled.set()
        self._say("framebuffer refused", str(error))
        if buffer is self._current:
            self._darken(str(error))

    async def _remove(self, buffer: WaylandBuffer) -> None:
        """The guest takes a buffer back: when this returns, the compositor maps it no more, and nobody reads it."""
        self.buffers.discard(buffer)
        async with self._reading:
            current = self._current is buffer
            if current:
                self._current = None
                self._complete()
            if self._old is buffer:
                self._old = None
                self._perhaps_complete()
            await self._copies_done()  # none is begun any more
            # A window may be open that has not been given a frame yet.
            if self._attached is buffer or (self._attached is None and current):
                self._close_window("the guest has removed what it showed")
                if self._current is not None:
                    self._show()
            if not await self._client.take_back(buffer, RELEASE_PATIENCE):
                self._say("the compositor stands still, and may map pages that the guest takes back", "", level="error")
            buffer.view = None

    # Switching

    async def enable(self, buffer: SinkBuffer, part: Part) -> None:
        assert isinstance(buffer, WaylandBuffer)
        if buffer.closed:
            raise SinkError(Errno.ENOENT, "the framebuffer is gone")
        if buffer.failure is not None:
            raise buffer.failure
        if self._part is None:
            self._detached = False
        self._current, self._part = buffer, part
        self._show()
        await trio.lowlevel.checkpoint()

    async def disable(self) -> None:
        self._current = self._part = None
        await self._copies_done()
        self._close_window("off")
        self._drop_copies()
        self._complete()
        await trio.lowlevel.checkpoint()

    async def release(self) -> None:
        self.flipped = _ignore
        self._watching.cancel()
        await self.disable()
        if self._copier is not None:
            await self._copier.close()
        self._drop_copies()
        self._client.give_back(self)

    async def edid(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return None

    async def allocate(self, pages: int) -> Allocation:
        await trio.lowlevel.checkpoint()
        raise SinkError(Errno.EOPNOTSUPP, "a compositor has no memory to give")

    # The connection

    def connected(self) -> None:
        """There is a compositor, again."""
        if self._current is not None:
            self._show()

    async def disconnected(self) -> None:
        """It is gone, and all that was made there."""
        await self._copies_done()
        self._window = self._attached = self._old = self._viewport = self._last = None
        self._owed = self._probing = False
        self._drop_copies()
        for buffer in self.buffers:
            buffer.cold()
        self._darken("there is no compositor")
        if self._token is not None:
            self._complete_by_timer()

    def screens_changed(self) -> None:
        """The compositor has other outputs."""
        if self._window is not None:
            self._window.move(self._screen())

    def _screen(self) -> Proxy | None:
        """The compositor's output that this connector is to fill."""
        session = self._client.session
        return session.screens.find(self._settings.outputs.get(self.name, self.name)) if session is not None else None

    def _open_window(self, session: Session) -> None:
        claimant = self._client.claimant
        names = {"guest": _clean(claimant.name) or f"domain {claimant.domid}", "connector": _clean(self.name)}
        try:
            self._window = Window(
                session,
                self._settings.title.format(**names),
                self._settings.app_id.format(**names),
                ivi_id(self.name, self._settings.surfaces),
                self._on_configured,
                self._on_closing,
            )
        except NoRole as error:
            self._darken(str(error))
            return
        self._hidden = self._unseen = self._owed = False
        self._window.begin(self._screen())
        session.conn.flush()

    def _close_window(self, why: str) -> None:
        if self._window is not None:
            if self._client.session is not None:
                self._client.session.forget(self)
            self._window.destroy()
            self._window = None
        self._attached = self._old = self._viewport = self._last = None
        self._darken(why)

    def _on_configured(self) -> None:
        # A commit makes the compositor forget about the frame before; of one that is not on the screen yet, it is to tell again.
        if self._attached is None or self._size != self._destination() or self._unseen:
            self._show()
        elif self._window is not None:
            self._window.surface.commit()  # what was acknowledged takes effect with a commit

    def _on_closing(self) -> None:
        """The user wants the window closed."""
        self._log.info("the window's user closes it", policy=self._settings.on_close)
        if self._settings.on_close == "detach":
            self._detached = True
            self._close_window("its user has closed the window")
            if self._token is not None:
                self._complete_by_timer()

    def _darken(self, why: str) -> None:
        self.path, self.reason = "", why
        if why != self.dark:
            self.dark = why
            if why != "off":
                self._say("output dark", why)

    # What a seat says

    @property
    def surface(self) -> Proxy | None:
        """Its surface, while there is one."""
        return self._window.surface if self._window is not None else None

    @property
    def size(self) -> tuple[int, int]:
        """The surface's size."""
        return self._size

    def tell(self, event: SeatEvent) -> None:
        """The surface is sent this."""
        self._client.seats.tell(self._client.claimant.domid, self.name, event)

    # Frames

    def flip(self, buffer: SinkBuffer, token: int) -> None:
        assert isinstance(buffer, WaylandBuffer)
        if self._part is None:
            raise SinkError(Errno.EINVAL, f"{self.name} is off")
        self._token = token
        self._serial += 1
        self._since = trio.current_time()
        self._timed = self._seen = False
        self._old = None
        self._current = buffer
        if not self._show():
            self._complete_by_timer()

    def _show(self) -> bool:
        """Give the surface the current frame. False: that cannot be done now, or nobody sees it."""
        session, buffer, part = self._client.session, self._current, self._part
        if session is None or buffer is None or part is None or self._detached:
            return False
        if self._window is None and self._client.open:
            self._open_window(session)
        window = self._window
        if window is None or not window.ready or not buffer.settled.is_set() or buffer.failure is not None:
            return False
        hidden = self._hidden or window.suspended
        unheard = hidden or self._unseen
        self._owed = unheard and (self._probing or not session.conn.keeps_up)
        if self._owed:
            self._probe(session)
            return not hidden
        if buffer.way == "copy":
            self._copy(session, buffer, part)
        else:
            self._commit(session, window, buffer.wl, buffer, self._serial)
        if unheard:
            self._probe(session)
        return not hidden

    def _probe(self, session: Session) -> None:
        """Ask whether the compositor has dealt with everything; one question at a time."""
        if not self._probing:
            self._probing = True
            session.conn.ask(self._on_answered)

    def _on_answered(self) -> None:
        """It has."""
        self._probing = False
        if self._owed:
            self._show()

    def _destination(self) -> tuple[int, int]:
        part, window = self._part, self._window
        if part is None or window is None:
            return self._size
        return window.destination(part.width, part.height, self._settings.scale)

    def _commit(self, session: Session, window: Window, wl: Proxy, frame: WaylandBuffer | Copy, serial: int) -> None:
        """Attach, damage, ask to be told, commit. `serial` is the flip that the frame belongs to."""
        part = self._part
        assert part is not None
        conn, surface = session.conn, window.surface
        self._place(window, frame, part)
        surface.attach(wl, 0, 0)
        surface.damage_buffer(0, 0, _ALL, _ALL)
        self._ask_of_next(session, window, serial)
        surface.commit()
        conn.flush()
        while self._old_copies:
            self._old_copies.pop().close()
        before, self._attached = self._attached, frame
        if isinstance(before, WaylandBuffer) and before is not frame and before.busy:
            self._old = before
        frame.busy = self._unseen = True
        self.path = "copy" if isinstance(frame, Copy) else frame.path
        self.reason = self._current.reason if self._current is not None else ""
        if self.dark:
            self.dark = ""
            self._log.info("output on", role=window.role, size=self._size, path=self.path)

    def _ask_of_next(self, session: Session, window: Window, serial: int) -> None:
        """Be told when what is committed next is on the screen, or that it never will be."""
        conn, last = session.conn, self._last
        if session.presentation is not None:
            commit = self._last = _Commit(serial, conn.keep(session.presentation.feedback(window.surface)))
            conn.on(commit.said_by, "presented", lambda *_: self._on_shown(commit))
            conn.on(commit.said_by, "discarded", lambda: self._on_discarded(commit))
        elif (self._hidden or window.suspended) and last is not None and last.said_by in window.callbacks:
            last.serial = serial  # the callbacks of a hidden surface come all at once, when it is seen: one is enough
        else:
            commit = self._last = _Commit(serial, conn.keep(window.surface.frame()))
            window.callbacks.add(commit.said_by)
            conn.on(commit.said_by, "done", lambda _: self._on_shown(commit))

    def _place(self, window: Window, frame: WaylandBuffer | Copy, part: Part) -> None:
        """Which part of the buffer is shown, and how large."""
        self._size = self._destination()
        if window.viewport is None:
            return
        source: Part | None = None
        if isinstance(frame, WaylandBuffer) and part != Part(0, 0, frame.geometry.width, frame.geometry.height):
            source = part
        wanted = (source, self._size)
        if wanted == self._viewport:
            return
        if source is None:
            window.viewport.set_source(-1, -1, -1, -1)
        else:
            window.viewport.set_source(source.x, source.y, source.width, source.height)
        if self._size == (part.width, part.height):
            window.viewport.set_destination(-1, -1)
        else:
            window.viewport.set_destination(*self._size)
        self._viewport = wanted

    def _on_shown(self, commit: _Commit) -> None:
        """A frame is on the screen."""
        if self._window is not None:
            self._window.callbacks.discard(commit.said_by)
        self._client.conn.drop(commit.said_by)
        self.shown += 1
        self._hidden = False
        if commit is self._last:
            self._unseen = False
            if isinstance(self._attached, WaylandBuffer):
                self._client.proved(self._attached)
        if commit.serial == self._serial:
            self._seen = True
            self._perhaps_complete()

    def _on_discarded(self, commit: _Commit) -> None:
        """A frame will never be: another one came after it, of which we shall hear, or nobody looks."""
        self._client.conn.drop(commit.said_by)
        if commit is self._last:
            self._unseen = False
            if self._token is not None and commit.serial == self._serial:
                self._complete_by_timer()

    def _perhaps_complete(self) -> None:
        if self._seen and self._old is None and self._token is not None and not self._timed:
            self._complete()

    def _complete(self) -> None:
        """The flip under way, if any, is over."""
        token, self._token = self._token, None
        if token is not None:
            self.flipped(token)

    def _complete_by_timer(self) -> None:
        """It is over at the next refresh that there would be."""
        if not self._timed:
            self._timed = True
            self._client.start_soon(self._complete_later, self._serial)

    async def _complete_later(self, serial: int) -> None:
        period = self._client.period
        await trio.sleep(period - trio.current_time() % period)
        if self._serial == serial:
            self._complete()

    def check_late(self, now: float) -> None:
        """Complete a flip of which the compositor says nothing: its surface is hidden, or it stands still."""
        if self._token is not None and not self._timed and now - self._since > LATE:
            self.late += 1
            self._hidden = True
            if self._client.session is not None:
                self._probe(self._client.session)
            self._complete()

    # Copies

    def _copy(self, session: Session, buffer: WaylandBuffer, part: Part) -> None:
        """Copy the frame in the thread, and commit."""
        if buffer.view is None:
            return
        copies = self._copies
        if copies is None or copies.shape != (buffer.geometry, part) or copies.session is not session:
            if self._copier is not None and not self._copier.resting:
                self._client.start_soon(self._copy_after, buffer)
                return
            if copies is not None:
                self._old_copies.append(copies)
            copies = self._copies = Copies(session, buffer.geometry, part, self._on_copy_free)
        frame = copies.take()
        if frame is None:
            self._no_copy_free = True
            return
        self._copier = self._copier or Copier(self.name)
        self._copier.do(partial(self._copy_in_thread, self._copier, copies, buffer.view, frame, self._serial))

    def _copy_in_thread(self, copier: Copier, copies: Copies, view: memoryview, frame: Copy, serial: int) -> None:
        copies.copy(view, frame)
        copier.tell(partial(self._copied, copies, frame, serial))

    async def _copy_after(self, buffer: WaylandBuffer) -> None:
        """Frames have another shape from now on: when those of the old one are done."""
        async with self._reading:
            await self._copies_done()
        if self._current is buffer:
            self._show()

    def _copied(self, copies: Copies, frame: Copy, serial: int) -> None:
        session, window = self._client.session, self._window
        if (
            copies is not self._copies
            or session is not copies.session
            or window is None
            or self._part != copies.shape[1]
        ):
            frame.busy = False
            return
        self._commit(session, window, frame.wl, frame, serial)

    def _on_copy_free(self) -> None:
        if self._no_copy_free:
            self._no_copy_free = False
            self._show()

    def _drop_copies(self) -> None:
        if self._copies is not None:
            self._old_copies.append(self._copies)
        self._copies, self._no_copy_free = None, False
        while self._old_copies:
            self._old_copies.pop().close()

    async def _copies_done(self) -> None:
        if self._copier is not None:
            await self._copier.idle()

    # Drawing without flipping

    async def watch(self, rate: float) -> None:
        """Show what the guest draws into the frame it shows, as long as it does not flip, until the output is released."""
        with self._watching:
            await self._watch(rate)

    async def _watch(self, rate: float) -> None:
        pause = shortest = 1 / rate
        digest: tuple[WaylandBuffer, int] | None = None
        flips = -1
        while True:
            await trio.sleep(pause)
            if flips != self._serial or self._attached is None or self._hidden:
                flips, digest, pause = self._serial, None, SLOWEST_LOOK
                continue
            if self._unseen:
                continue
            looked = await self._digest()
            if looked is None or looked == digest or flips != self._serial:
                pause = min(max(shortest, SLOWEST_LOOK), pause * 1.25)
                continue
            digest, pause = looked, shortest
            self._show()

    async def _digest(self) -> tuple[WaylandBuffer, int] | None:
        """What the current frame looks like, in a number."""
        async with self._reading:
            buffer = self._current
            if buffer is None or not buffer.settled.is_set() or buffer.failure is not None:
                return None
            try:
                view = await buffer.map()
            except SinkError:
                return None
            geometry = buffer.geometry
            frame = view[geometry.offset : geometry.offset + geometry.stride * geometry.height]
            try:
                return buffer, await trio.to_thread.run_sync(zlib.crc32, frame)
            finally:
                frame.release()

    def _say(self, event: str, reason: str, *, level: str = "warning", **more: object) -> None:
        """A line in the log, unless it was there a moment ago."""
        now = trio.current_time()
        if now - self._said.get((event, reason), -SAY_AGAIN) >= SAY_AGAIN:
            self._said = {key: when for key, when in self._said.items() if now - when < SAY_AGAIN}
            self._said[event, reason] = now
            getattr(self._log, level)(event, reason=reason or None, **more)


def ivi_id(name: str, surfaces: Mapping[str, int]) -> int | None:
    """The id for ivi-application of a connector's surface, a number of 32 bits: from [wayland.surfaces], or its name is one."""
    if name in surfaces:
        return surfaces[name]
    number = int(name) if name.isascii() and name.isdecimal() and len(name) <= 10 else _NO_ID
    return number if number < _NO_ID else None


_NO_ID: Final = 2**32
_ALL: Final = 2**31 - 1


def _clean(text: str) -> str:
    """A name for a title: no control characters, and not too long."""
    return "".join(character if character.isprintable() else "?" for character in text)[:64]


def _ignore(token: int) -> None:
    """A flip of a guest that has gone."""

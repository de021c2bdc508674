"""The hardware's side of an output: what it takes to put a picture on one connector. Everything here may wait: for worker threads.

One user at a time: the output holds its lock.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Sequence
from contextlib import suppress

import msgspec

from displbe.sinks.base import Part
from displbe.wire.formats import FORMATS

from .atomic import MODESET, TEST, Atomic, Pipe, Scene, full, off
from .buffer import DrmBuffer
from .device import Mode
from .dumb import Ring
from .errors import Busy, CardGone, DrmError, NotMaster, about, drm_error
from .frames import Cut, copy_frame
from .scaling import Placement

__all__ = ["Lit", "Stage"]


class Lit(msgspec.Struct, frozen=True):
    """What the screen was switched to."""

    placement: Placement
    flip: Atomic
    """Changes the plane's framebuffer, nothing else."""
    slot: int
    """The framebuffer's place in `flip`."""
    ring: Ring | None
    """Frames are copied into these; None: zero copy."""
    cut: Cut | None
    must_be_told: bool = False
    """The card shows what is drawn into the frame on the screen only when it is told that the frame has changed."""


class Stage:
    """A pipe, and what we have made on its card for it."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self._blob = 0
        self._ring: Ring | None = None

    def import_buffer(self, buffer: DrmBuffer, dmabuf: int, modes: Sequence[Mode]) -> int:
        """A framebuffer over a guest's pages, once the card has said that it would show it. Raises DrmError."""
        with about(self.pipe.name):
            return self._import_buffer(buffer, dmabuf, modes)

    def _import_buffer(self, buffer: DrmBuffer, dmabuf: int, modes: Sequence[Mode]) -> int:
        card, shape = self.pipe.card, buffer.geometry
        if not card.imports:
            raise drm_error("import dma-buf", errno.EOPNOTSUPP)
        size = shape.width, shape.height
        fb = card.import_framebuffer(dmabuf, *size, buffer.fourcc, shape.stride, shape.offset)
        exact = [mode for mode in modes if (mode.width, mode.height) == size]
        try:
            if exact:
                self._try(Scene(fb, (0, 0, *size), exact[0], (0, 0, *size)), "test zero copy", TEST)
        except DrmError as error:
            if error.of_the_picture or isinstance(error, CardGone):
                self.remove(fb)
                raise
            # e.g. who is not master may not ask: that says nothing of the buffer
        return fb

    def _try(self, scene: Scene, operation: str, flags: int) -> int:
        """Commit a whole scene: the blob of its mode, which is in use now unless this was a test. Raises DrmError."""
        card = self.pipe.card
        blob = card.create_blob(scene.mode.raw)
        try:
            Atomic(card, full(self.pipe, scene, blob)).commit(operation, flags)
        except DrmError:
            card.destroy_blob(blob)
            raise
        if flags & TEST == TEST:
            card.destroy_blob(blob)
        return blob

    def remove(self, fb: int) -> None:
        """RmFB: what shows it is switched off, and that is waited for. What cannot be removed is gone already."""
        with suppress(DrmError):
            self.pipe.card.remove_framebuffer(fb)

    def light(self, buffer: DrmBuffer, part: Part, where: Sequence[Placement], *, copy: bool) -> Lit:
        """Show a frame in the best way that the card takes. Raises DrmError: the screen stays as it was."""
        refusal: DrmError | None = None
        for placement in where:
            if placement.borders and not copy:
                continue
            try:
                with about(self.pipe.name):
                    return self._copied(buffer, part, placement) if copy else self._direct(buffer, part, placement)
            except (NotMaster, CardGone, Busy):
                raise
            except DrmError as error:
                refusal = refusal or error
        raise refusal or drm_error("find a mode", errno.EINVAL, self.pipe.name)

    def _direct(self, buffer: DrmBuffer, part: Part, placement: Placement) -> Lit:
        source = part.x, part.y, *placement.shown
        scene = Scene(buffer.fb, source, placement.mode, placement.target)
        lit = self._show(scene, placement, None, None)
        return msgspec.structs.replace(lit, must_be_told=self.pipe.card.mark_dirty(buffer.fb))

    def _copied(self, buffer: DrmBuffer, part: Part, placement: Placement) -> Lit:
        mode, size, origin = placement.mode, placement.shown, (0, 0)
        if placement.borders:
            size, origin = (mode.width, mode.height), placement.target[:2]
        ring = Ring(self.pipe.card, (*size, FORMATS[buffer.fourcc].bits, buffer.fourcc))
        try:
            cut = _cut(buffer, part, placement.shown, ring, origin)
            copy_frame(buffer, cut, ring.back)
            on_screen = (0, 0, *size) if placement.borders else placement.target
            return self._show(Scene(ring.back.fb, (0, 0, *size), mode, on_screen), placement, ring, cut)
        except BaseException:
            ring.close()
            raise

    def _show(self, scene: Scene, placement: Placement, ring: Ring | None, cut: Cut | None) -> Lit:
        plane = self.pipe.plane.id
        flip = Atomic(
            self.pipe.card, {("plane", plane): {"FB_ID": scene.fb, "CRTC_ID": self.pipe.crtc}}, self.pipe.name
        )
        blob = self._try(scene, "set mode", MODESET)
        if ring is not None:
            ring.turn()
        self._drop()
        self._blob, self._ring = blob, ring
        return Lit(placement, flip, flip.slot("plane", plane, "FB_ID"), ring, cut)

    def shows(self, framebuffers: Collection[int]) -> bool:
        """Whether one of these is on the plane. Raises DrmError."""
        return self.pipe.card.shown_framebuffer(self.pipe.plane.id) in framebuffers

    def freeze(self, buffer: DrmBuffer, part: Part, lit: Lit) -> None:
        """Put a copy of a frame into its place on the screen. Raises DrmError."""
        with about(self.pipe.name):
            self._copied(buffer, part, lit.placement)

    def switch_off(self) -> None:
        """Nothing on the screen, and nothing held for it. Raises DrmError, but nothing is held then either."""
        try:
            with about(self.pipe.name):
                Atomic(self.pipe.card, off(self.pipe)).commit("switch off", MODESET)
        finally:
            self._drop()

    def leave(self) -> bool:
        """Hold nothing, but leave the copied frame that is on the screen there; False when there is none, or no way to."""
        ring = self._ring
        if ring is None:
            return False
        try:
            ring.front.leave()
        except DrmError:
            return False
        ring.back.close()
        self._ring = None
        self._drop()
        return True

    def _drop(self) -> None:
        """Free what was made for the scene before."""
        ring, self._ring = self._ring, None
        blob, self._blob = self._blob, 0
        if ring is not None:
            ring.close()
        if blob:
            with suppress(DrmError):
                self.pipe.card.destroy_blob(blob)

    def close(self) -> None:
        """The card has gone: let go of everything of it."""
        self._drop()


def _cut(buffer: DrmBuffer, part: Part, shown: tuple[int, int], ring: Ring, origin: tuple[int, int]) -> Cut:
    shape = buffer.geometry
    octets, ours = (FORMATS[code].bits // 8 for code in (shape.fourcc, buffer.fourcc))
    return Cut(
        row=shown[0] * octets,
        rows=shown[1],
        source=shape.offset + part.y * shape.stride + part.x * octets,
        source_stride=shape.stride,
        target=origin[1] * ring.back.pitch + origin[0] * ours,
        converted=shape.fourcc if buffer.converted else 0,
    )

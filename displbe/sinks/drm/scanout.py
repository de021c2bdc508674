"""The pipe to one connector and the mode it is in. Everything here may wait, so it is called in worker threads.

One caller at a time: the output holds its lock.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from typing import Any, Final

import msgspec
import structlog

from displbe.sinks.base import CopyMemory, Part
from displbe.sinks.convert import YUYV, pixel_size
from displbe.sinks.frame_copy import frame_rows
from displbe.sinks.turn import Turn
from displbe.wire.edid import sideways

from .atomic import MODESET, TEST, Atomic, Changes, Pipe, PlaneConfig, full_state, off_state, rotation
from .buffer import DrmBuffer
from .copied_scanout import CopyTarget, copy_into
from .device import DmabufImport, Mode
from .double_buffer import DoubleBuffer, DumbBuffer
from .errors import Busy, CardGone, DrmError, NotMaster, drm_error, name_connector
from .mode_search import ModeSearch
from .neutral import commit_with, neutral_values
from .placement import Placement, ranked_modes

__all__ = ["ActiveMode", "ScanoutPipe", "sideways_edid", "upright"]

_log: Final[Any] = structlog.get_logger("displbe.drm")


def upright(modes: Sequence[Mode], turn: Turn) -> tuple[Mode, ...]:
    """Return a panel's modes with their sizes as they are seen when the panel is mounted with this turn."""
    sizes = [turn.size(mode.width, mode.height) for mode in modes]
    return tuple(
        msgspec.structs.replace(mode, width=width, height=height)
        for mode, (width, height) in zip(modes, sizes, strict=True)
    )


def sideways_edid(edid: bytes, modes: Sequence[Mode]) -> bytes | None:
    """Return the EDID of a monitor that is mounted sideways, with its preferred mode; None: it is invalid. `modes` are upright."""
    if not modes:
        return None
    mode = next((mode for mode in modes if mode.preferred), modes[0])
    try:
        return sideways(edid, mode.width, mode.height, mode.refresh) or None
    except ValueError:  # an odd refresh rate
        return None


MOST_TESTS: Final = 8
"""Maximum number of modes in which an imported framebuffer is tested."""


class ActiveMode(msgspec.Struct, frozen=True):
    """The mode that the screen was switched to, and the commit that puts frames onto it."""

    placement: Placement
    flip: Atomic
    """The commit that changes the plane's framebuffer and nothing else."""
    slot: int
    """The framebuffer's index in `flip`."""
    copy: CopyTarget | None
    """The target of copies; None: zero copy."""
    must_be_told: bool = False
    """Whether the card must be told that the frame on the screen has changed before it shows the change."""


class ScanoutPipe:
    """A pipe, and the blobs and buffers that were made on its card to show frames through it.

    All modes and placements that it is given are upright; `turn` is how pictures lie on the panel. `copies` returns what is
    charged for the memory of copies.
    """

    def __init__(self, pipe: Pipe, turn: Turn = Turn.NONE, copies: Callable[[], CopyMemory] = CopyMemory) -> None:
        self.pipe = pipe
        """Another pipe to the same connector may take its place before a mode is set."""
        self.turn = turn
        self._copies = copies
        self._turns_copies = True
        """Whether the plane is asked to turn copied frames. Otherwise they are turned as they are copied."""
        self._left_alone: set[tuple[tuple[str, int], str]] = set()
        """Objects and names of properties whose neutral values the card has refused."""
        self._mode_blob = 0
        """The property blob of the mode in use; 0: the pipe is off."""
        self._buffers: DoubleBuffer | None = None
        self._cover: DumbBuffer | None = None
        """The frame that takes the place of a guest's frame that is removed. It has the size of the shown part."""

    def import_buffer(self, buffer: DrmBuffer, dmabuf: int, modes: Sequence[Mode]) -> int:
        """Make a framebuffer over a guest's pages and return its id.

        Raises DrmError, also if a test commit says that the card would not show the framebuffer in a mode of its size.
        """
        with name_connector(self.pipe.name):
            return self._import_buffer(buffer, dmabuf, modes)

    def _import_buffer(self, buffer: DrmBuffer, dmabuf: int, modes: Sequence[Mode]) -> int:
        device, shape = self.pipe.device, buffer.geometry
        if device.dmabuf_import is DmabufImport.IMPOSSIBLE:
            raise drm_error("import dma-buf", errno.EOPNOTSUPP)
        size = shape.width, shape.height
        fb = device.import_framebuffer(dmabuf, *size, buffer.format.fourcc, shape.stride, shape.offset)
        try:
            self._test_import(fb, buffer.format.fourcc, size, modes)
        except DrmError as error:
            if error.refuses_frame or isinstance(error, CardGone):
                self.remove(fb)
                raise
            # Other errors say nothing about the buffer. For example, a file that is not master may not test.
        return fb

    def _test_import(self, fb: int, fourcc: int, size: tuple[int, int], modes: Sequence[Mode]) -> None:
        """Test a framebuffer in a mode of its size. Raises DrmError: the card would not show it.

        A mode that the card refuses with a frame of ours, too, says nothing about the guest's: the link may be too slow for
        it. The next mode of this size is tested then.
        """
        exact = [mode for mode in modes if (mode.width, mode.height) == size]
        whole = 0, 0, *size
        if self.turn is not Turn.NONE:
            rotation(self.pipe, self.turn)
        with closing(ModeSearch(fourcc, self.turn)) as search:
            for mode in ranked_modes(exact, *size, "none")[:MOST_TESTS]:
                try:
                    config = PlaneConfig(fb, whole, mode, self.turn.on_panel(whole, *size), self.turn)
                    self._commit(config, "test zero copy", TEST)
                    return
                except DrmError as error:
                    if not error.refuses_frame or search.passes(self.pipe, mode):
                        raise

    def _commit(self, config: PlaneConfig, operation: str, flags: int) -> int:
        """Commit or test all of the pipe's state. Return the mode's blob, which is in use unless this was a test.

        Raises DrmError.
        """
        device = self.pipe.device
        blob = device.create_blob(config.mode.raw)
        try:
            self._commit_neutral(full_state(self.pipe, config, blob), operation, flags)
        except DrmError:
            device.destroy_blob(blob)
            raise
        if flags & TEST == TEST:
            device.destroy_blob(blob)
        return blob

    def _commit_neutral(self, state: Changes, operation: str, flags: int) -> None:
        """Commit or test a state and neutral values of other properties, except those that the card refuses. Raises DrmError."""
        pipe = self.pipe
        neutral = [
            extra
            for extra in neutral_values(pipe)
            if extra.name not in state[extra.object] and (extra.object, extra.name) not in self._left_alone
        ]
        for extra, error in commit_with(pipe.device, state, neutral, operation, flags, pipe.name):
            self._left_alone.add((extra.object, extra.name))
            _log.warning(
                "the card refuses a property's neutral value: what the last program set stays, and may change the picture",
                connector=pipe.name,
                property=extra.name,
                reason=str(error),
            )

    def remove(self, fb: int) -> None:
        """Remove a framebuffer. Switch off a plane that shows it, and wait for that.

        Errors are ignored: they mean that the framebuffer is gone already.
        """
        with suppress(DrmError):
            self.pipe.device.remove_framebuffer(fb)

    def switch_on(self, buffer: DrmBuffer, part: Part, where: Sequence[Placement], *, copy: bool) -> ActiveMode:
        """Show a frame in the first of these ways that the card accepts. Raises DrmError; the screen then stays as it was."""
        refusal: DrmError | None = None
        for placement in where:
            if placement.borders and not copy:
                continue
            try:
                with name_connector(self.pipe.name):
                    if copy:
                        return self._show_copy(buffer, part, placement)
                    return self._show_directly(buffer, part, placement)
            except (NotMaster, CardGone, Busy):
                raise
            except DrmError as error:
                refusal = refusal or error
        raise refusal or drm_error("find a mode", errno.EINVAL, self.pipe.name)

    def _show_directly(self, buffer: DrmBuffer, part: Part, placement: Placement) -> ActiveMode:
        source = part.x, part.y, *placement.shown
        mode = placement.mode
        target = self.turn.on_panel(placement.target, mode.width, mode.height)
        active = self._show(PlaneConfig(buffer.fb, source, mode, target, self.turn), placement, None)
        return msgspec.structs.replace(active, must_be_told=self.pipe.device.mark_dirty(buffer.fb))

    def _show_copy(self, buffer: DrmBuffer, part: Part, placement: Placement) -> ActiveMode:
        """Show copies of frames. They are turned by the plane if it can, else as they are copied."""
        if self.turn is Turn.NONE:
            return self._show_turned_copy(buffer, part, placement, Turn.NONE)
        if self._turns_copies:
            try:
                rotation(self.pipe, self.turn)
                return self._show_turned_copy(buffer, part, placement, Turn.NONE)
            except DrmError as error:
                if not error.refuses_frame:
                    raise
        active = self._show_turned_copy(buffer, part, placement, self.turn)
        self._turns_copies = False
        return active

    def _show_turned_copy(self, buffer: DrmBuffer, part: Part, placement: Placement, in_copy: Turn) -> ActiveMode:
        """Show frames that are turned by `in_copy` as they are copied; the plane does the rest of the turn."""
        mode = placement.mode
        by_plane = self.turn if in_copy is Turn.NONE else Turn.NONE
        screen = mode.width, mode.height
        size, origin, on_screen = placement.shown, (0, 0), placement.target
        if placement.borders:
            size, on_screen = screen, (0, 0, *screen)
            left, top, *_ = in_copy.on_panel(placement.target, *screen)
            # Two pixels of YUYV share their colour: a picture that began with the second one would have wrong colours.
            origin = left - left % 2 if buffer.format.fourcc == YUYV else left, top
        size = in_copy.size(*size)
        shape = *size, buffer.format.fourcc
        private_frames = 1 if in_copy is Turn.NONE else 2
        try:
            buffers = DoubleBuffer(self.pipe.device, shape, self._copies(), private_frames)
        except OSError:
            if self._buffers is None:
                raise
            self.switch_off()  # without the copies of the mode before, there may be enough
            buffers = DoubleBuffer(self.pipe.device, shape, self._copies(), private_frames)
        try:
            assert buffer.memory is not None
            rows = frame_rows(buffer.geometry, Part(part.x, part.y, *placement.shown))
            offset = origin[1] * buffers.back.pitch + origin[0] * pixel_size(buffer.format.fourcc)
            target = CopyTarget(rows, buffers, offset, bool(buffer.format.conversion), in_copy)
            target.copy(buffer.memory)
            config = PlaneConfig(buffers.back.fb, (0, 0, *size), mode, self.turn.on_panel(on_screen, *screen), by_plane)
            return self._show(config, placement, target)
        except BaseException:
            buffers.close()
            raise

    def _show(self, config: PlaneConfig, placement: Placement, copy: CopyTarget | None) -> ActiveMode:
        pipe, plane = self.pipe, ("plane", self.pipe.plane.id)
        changes = {"FB_ID": config.fb, "CRTC_ID": pipe.crtc}
        if config.source[:2] != (0, 0):  # `cover` changes them
            changes |= {"SRC_X": config.source[0] << 16, "SRC_Y": config.source[1] << 16}
        flip = Atomic(pipe.device, {plane: changes}, pipe.name)
        blob = self._commit(config, "set mode", MODESET)
        if copy is not None:
            copy.buffers.swap()
        self._free()
        self._mode_blob, self._buffers = blob, copy.buffers if copy is not None else None
        return ActiveMode(placement, flip, flip.slot(*plane, "FB_ID"), copy)

    def shows(self, framebuffers: Collection[int]) -> bool:
        """Return whether one of these framebuffers is on the plane. Raises DrmError."""
        return self.pipe.device.shown_framebuffer(self.pipe.plane.id) in framebuffers

    def is_covered(self) -> bool:
        """Return whether the frame that covers the screen is on the plane. Raises DrmError."""
        return self._cover is not None and self.shows({self._cover.fb})

    def cover(self, buffer: DrmBuffer, part: Part, active: ActiveMode, *, copy: bool) -> None:
        """Take a guest's frame off the screen: put a black frame in its place, or a `copy` of it. The mode stays.

        Raises DrmError; the frame is still on the screen then. Waits until the frame has left the screen, so that the
        kernel need not take it off when it is removed: for that, the kernel locks all of the card's screens.
        """
        device, size, fourcc = self.pipe.device, active.placement.shown, buffer.format.fourcc
        shape = *size, fourcc
        if self._cover is not None and self._cover.shape != shape:
            self._free_cover()
        with name_connector(self.pipe.name):
            cover = self._cover = self._cover or DumbBuffer(device, *shape, self._copies())
            if copy and buffer.memory is not None:
                rows = frame_rows(buffer.geometry, Part(part.x, part.y, *size))
                copy_into(cover, rows, buffer.memory, converted=bool(buffer.format.conversion), into=fourcc)
            changes = {"FB_ID": cover.fb, "CRTC_ID": self.pipe.crtc, "SRC_X": 0, "SRC_Y": 0}
            Atomic(device, {("plane", self.pipe.plane.id): changes}).commit("cover frame", 0)

    def switch_off(self) -> None:
        """Switch the screen off, and free the buffers and blobs that were made for it.

        Raises DrmError; they are freed in that case too.
        """
        try:
            with name_connector(self.pipe.name):
                try:
                    Atomic(self.pipe.device, off_state(self.pipe)).commit("switch off", MODESET)
                except DrmError as error:
                    if error.number != errno.ENOENT:
                        raise
                    # The connector has just gone with its dock.
                    Atomic(self.pipe.device, off_state(self.pipe, connector=False)).commit("switch off", MODESET)
        finally:
            self._free()

    def leave(self) -> bool:
        """Leave the copied frame on the screen and free everything else.

        Return False if there is none, or the kernel cannot do so.
        """
        buffers, cover = self._buffers, self._cover
        try:
            if buffers is not None:
                buffers.leave()
            elif cover is not None and self.is_covered():
                cover.leave()
                self._cover = None
            else:
                return False
        except DrmError:
            return False
        self._buffers = None
        self._free()
        return True

    def _free(self) -> None:
        """Free the buffers and blobs of the previous mode."""
        self._free_cover()
        buffers, self._buffers = self._buffers, None
        blob, self._mode_blob = self._mode_blob, 0
        if buffers is not None:
            buffers.close()
        if blob:
            with suppress(DrmError):
                self.pipe.device.destroy_blob(blob)

    def _free_cover(self) -> None:
        cover, self._cover = self._cover, None
        if cover is not None:
            cover.close()

    def close(self) -> None:
        """Free everything; the card is gone, or is being closed."""
        self._free()

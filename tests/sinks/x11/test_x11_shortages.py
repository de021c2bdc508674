"""No memory, files or threads for the frames of a window: it is not drawn for a while, with the reason; the guest flips on."""

from __future__ import annotations

import errno
import os
from typing import Any

import msgspec
import pytest
import trio
from scenario.world import World, spec, until
from sinks.x11.conftest import Worlds, output_of
from sinks.x11.test_x11 import HEIGHT, WIDTH, as_shown, framebuffer, seen, show
from sinks.x11.xvfb import User, Xvfb

from displbe.sinks.x11 import painter


def used(world: World) -> int:
    """The pages of copies that the guest is charged for."""
    return world.device(1).quota.used["copy_pages"]


@pytest.mark.parametrize("call", ["memfd_create", "dup", "worker"])
async def test_a_shortage_costs_a_frame(
    worlds: Worlds, xvfb: Xvfb, user: User, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(painter, "AFTER_ERROR", 0.05)
    short = True

    def fail(real: Any, error: Exception) -> Any:
        def refuse(*arguments: Any, **names: Any) -> Any:
            if short:
                raise error
            return real(*arguments, **names)

        return refuse

    no_file = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        made = await framebuffer(guest, 1)
        with monkeypatch.context() as patch:
            if call == "worker":
                error = RuntimeError("can't start new thread")
                patch.setattr(trio.to_thread, "run_sync", fail(trio.to_thread.run_sync, error))
            else:
                patch.setattr(os, call, fail(getattr(os, call), no_file))
            await guest.display.show(0, made[0], WIDTH, HEIGHT, 32)
            output = output_of(world)
            await until(lambda: output.reason.startswith("the frame cannot be copied: "), 10)
            assert "in displbe.service" in output.reason
            assert output.path == ""
            await guest.display.connectors[0].flip(made[0])
            short = False
            await seen(user, as_shown(made[2]))
            await until(lambda: output.path == "copy", 10)
        await guest.display.hide(0)
        await until(lambda: used(world) == 0, 10)


async def test_copies_are_charged(worlds: Worlds, xvfb: Xvfb, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame for each window. A guest without pages for it has no picture, and gets it when it has."""
    monkeypatch.setattr(painter, "AFTER_ERROR", 0.05)
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        quota = world.device(1).quota
        before = quota.limits
        quota.limits = msgspec.structs.replace(before, copy_pages=1)
        _, _, pixels = await show(guest)
        output = output_of(world)
        await until(lambda: "limit of 1 copy_pages reached" in output.reason, 10)
        assert "copy-pages in [limits]" in output.reason
        assert used(world) == 0
        quota.limits = before
        await seen(user, as_shown(pixels))
        assert used(world) == -(-WIDTH * HEIGHT * 4 // 4096)


async def test_the_copy_of_an_old_size_makes_room(
    worlds: Worlds, xvfb: Xvfb, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that may have the copy of one size only can change the size."""
    monkeypatch.setattr(painter, "AFTER_ERROR", 0.05)
    async with worlds(xvfb.display) as world, world.guest(1, spec("HDMI-A-1", WIDTH, HEIGHT)) as guest:
        quota = world.device(1).quota
        quota.limits = msgspec.structs.replace(quota.limits, copy_pages=-(-WIDTH * HEIGHT * 4 // 4096))
        cookie, _, pixels = await show(guest)
        await seen(user, as_shown(pixels))
        await guest.display.show(0, cookie, WIDTH, HEIGHT // 2, 32)
        await until(lambda: 0 < used(world) < quota.limits.copy_pages, 10)
        await until(lambda: output_of(world).path == "copy", 10)

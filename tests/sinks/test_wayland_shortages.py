"""No more memory, files or threads for copies of frames: the output is dark and says why, the guest flips on, and is shown later."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

import pytest
from copy_account import CopyAccount
from sinks.test_wayland import HEIGHT, WHOLE, WIDTH, on_screen, staged, until

from displbe.sinks import copy_thread
from displbe.sinks.base import Part
from displbe.sinks.wayland import conn, copies
from displbe.sinks.wayland import output as output_module
from displbe.sinks.wayland.buffers import BufferState
from displbe.threads import NoThread, start_thread
from displbe.xen.memory import Mapping

POOL = copies.FRAMES * -(-WIDTH * 4 * HEIGHT // 4096)
"""Pages of one output's copies, as they are charged."""


async def test_eight_connectors_and_memory_for_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others stay dark and flip by the timer. When one is switched off, another one is shown in its place."""
    monkeypatch.setattr(output_module, "SHORT", 0.02)
    account = CopyAccount(3 * POOL)
    async with staged(zero_copy="off") as stage:
        outputs = [stage.claim(f"HDMI-A-{number}") for number in range(8)]
        await stage.connected()
        buffers = []
        for output in outputs:
            output.copies = account.copies
            buffers.append(await stage.attach(output))
        for output, buffer in zip(outputs, buffers, strict=True):
            await output.enable(buffer, WHOLE)
        await until(lambda: sum(output.path == "copy" for output in outputs) == 3)
        assert account.used == 3 * POOL
        dark = [output for output in outputs if not output.path]
        why = f"the frame cannot be copied: limit of {3 * POOL} copy_pages reached"
        await until(lambda: all(output.reason == why for output in dark))
        await stage.flip(dark[-1], buffers[outputs.index(dark[-1])], 5)
        lit = [output for output in outputs if output.path]
        await lit[0].disable()
        await until(lambda: sum(output.path == "copy" for output in outputs) == 3)
        assert lit[0].path == ""
        assert account.used == 3 * POOL
    assert account.used == 0


async def test_copies_of_an_old_size_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that may have the copies of one size only can change the size."""
    monkeypatch.setattr(output_module, "SHORT", 0.02)
    account = CopyAccount(POOL)
    async with staged(zero_copy="off") as stage:
        output = stage.claim()
        output.copies = account.copies
        await stage.connected()
        buffer = await stage.attach(output)
        await output.enable(buffer, WHOLE)
        await on_screen(output)
        await output.enable(buffer, Part(0, 0, WIDTH, HEIGHT - 1))
        await until(lambda: not output.path)
        await until(lambda: output.path == "copy")
        assert account.used <= POOL
    assert account.used == 0


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate", "thread", "dup", "mapping"])
async def test_a_shortage_costs_a_frame(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Each is refused once. Nothing is left of the attempt, and the output is shown without the guest doing anything."""
    monkeypatch.setattr(output_module, "SHORT", 0.02)
    failed: list[str] = []

    def fail(real: Any, error: Exception) -> Any:
        def once(*arguments: Any, **names: Any) -> Any:
            if not failed:
                failed.append(call)
                raise error
            return real(*arguments, **names)

        return once

    no_file, no_memory = OSError(errno.EMFILE, os.strerror(errno.EMFILE)), OSError(errno.ENOMEM, "no memory")
    async with staged(zero_copy="off") as stage:
        output = stage.claim()
        account = CopyAccount(POOL)
        output.copies = account.copies
        await stage.connected()
        buffer = await stage.attach(output)
        await until(lambda: any(surface.shown for surface in stage.compositor.client.surfaces.values()))  # black
        with monkeypatch.context() as patch:
            match call:
                case "memfd_create":
                    patch.setattr(os, "memfd_create", fail(os.memfd_create, no_file))
                case "ftruncate":
                    patch.setattr(os, "ftruncate", fail(os.ftruncate, no_memory))
                case "mapping":
                    patch.setattr(copies, "Mapping", fail(Mapping, no_memory))
                case "dup":
                    check = fail(conn.Connection.check_sendable, no_file)
                    patch.setattr(conn.Connection, "check_sendable", staticmethod(check))
                case "thread":
                    error = RuntimeError("can't start new thread")
                    patch.setattr(threading.Thread, "start", fail(threading.Thread.start, error))
            await output.enable(buffer, WHOLE)
            await until(lambda: failed == [call])
            assert output.path == ""
            assert output.reason.startswith("the frame cannot be copied: ")
            assert account.used == 0
            await stage.flip(output, buffer, 3)
            await on_screen(output)
        assert (output.path, account.used) == ("copy", POOL)
        assert stage.sink.clients[next(iter(stage.sink.clients))].connections == 1


async def test_a_file_that_cannot_be_sent_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """libwayland would end the process: the frame is copied instead, and the connection stays."""

    def check(fd: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with staged() as stage:
        output = stage.claim()
        await stage.connected()
        with monkeypatch.context() as patch:
            patch.setattr(conn.Connection, "check_sendable", staticmethod(check))
            buffer = await stage.attach(output)
        assert buffer.state is BufferState.COPY
        assert "Too many open files: raise LimitNOFILE= in displbe.service" in buffer.reason
        await output.enable(buffer, WHOLE)
        await on_screen(output)
        assert output.path == "copy"


async def test_no_thread_for_a_look_at_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that draws without flipping is looked at again when threads can be started again."""
    real = start_thread
    refused = 0

    def start(*arguments: Any) -> Any:
        nonlocal refused
        if refused < 5:
            refused += 1
            raise NoThread
        return real(*arguments)

    async with staged(refresh=100.0) as stage:
        monkeypatch.setattr(copy_thread, "start_thread", start)
        output, first, _ = await stage.lit()
        await until(lambda: refused == 5)
        pages: Any = first.pages
        pages.memory[:] = b"\7\7\7\0" * (len(pages.memory) // 4)
        frames = output.shown
        await until(lambda: output.shown > frames)

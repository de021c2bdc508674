"""XenStore in `displbectl check`: this domain's id, the guests' devices with their states and errors, and the guests' names.

The client is pyxs. It shares no code with displbe's own client (xen/store.py), so this check also finds mistakes there. pyxs is LGPL-3
and optional: the extra `check` of the wheel. It has no time limits, and after a lost connection its calls never return. So it runs in
separate threads, which are abandoned after TIMEOUT seconds.
"""

from __future__ import annotations

import contextlib
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Final

from displbe.config import Settings
from displbe.wire.xenbus import State, parse_state
from displbe.wire.xs import parse_number
from displbe.xen import paths

from .check_result import CheckResult, passed, warning
from .machine import Machine

__all__ = ["TIMEOUT", "store_results"]

TIMEOUT: Final = 3.0
"""Seconds that all reads together may take."""
KINDS: Final = ("vdispl", "vinput")
"""The device types that displbe serves: directories below `backend`."""
MAX_ERROR: Final = 200
"""Maximum characters of an error node that are shown."""
LEFT_OUT: Final = "this domain's id, the guests' devices with their states and errors, the guests' names"


class NoAnswer(Exception):
    """XenStore cannot be read; the text says why."""


def store_results(machine: Machine, settings: Settings) -> Iterator[CheckResult]:
    """Check XenStore over the first path that the daemon could use. Nothing is written."""
    if find_spec("pyxs") is None:
        yield warning(
            f"XenStore was not read, because Python has no pyxs. Left out: {LEFT_OUT}",
            "install displbe[check], or the distribution's package (python3-pyxs)",
        )
        return
    path = _path(machine, settings)
    if path is None:  # the check of the device nodes has reported it
        return
    try:
        yield from _with_client(path, _read)
    except NoAnswer as error:
        yield warning(
            f"XenStore was not read ({path}: {error}). Left out: {LEFT_OUT}", "see that Dom0's xenstored runs"
        )


def _path(machine: Machine, settings: Settings) -> str | None:
    """Return the path of the socket or device to use, or None. Files of other types are not used."""
    wanted = [settings.xen.store] if settings.xen.store else [*paths.SOCKETS, paths.XENBUS]
    for path in map(machine.path, wanted):
        with contextlib.suppress(OSError):
            mode = path.stat().st_mode
            if (stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)) and machine.may(path, os.R_OK | os.W_OK):
                return str(path)
    return None


def _with_client(path: str, read: Callable[[Any], list[CheckResult]]) -> list[CheckResult]:
    """Call `read` with a connected pyxs.Client. Raises NoAnswer."""
    import pyxs
    from pyxs.connection import UnixSocketConnection, XenBusConnection

    try:
        os.close(
            paths.connect(path, TIMEOUT)
        )  # pyxs connects without a time limit, and leaks its socket when that fails
    except OSError as error:
        raise NoAnswer(error.strerror or str(error)) from error
    results: queue.SimpleQueue[list[CheckResult] | NoAnswer] = queue.SimpleQueue()
    is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    router = pyxs.Router((UnixSocketConnection if is_socket else XenBusConnection)(path))

    def route() -> None:
        try:
            router()
        except Exception as error:  # the router's thread ends; calls that wait for a reply never return
            results.put(NoAnswer(str(error)))

    def work() -> None:
        try:
            with pyxs.Client(router=router) as client:
                found = read(client)
            results.put(found)
        except Exception as error:  # any kind: a closed connection may also cause an AttributeError inside pyxs
            results.put(NoAnswer(str(error)))

    router.thread = threading.Thread(target=route, name="pyxs", daemon=True)
    threading.Thread(target=work, name="xenstore", daemon=True).start()
    try:
        result = results.get(timeout=TIMEOUT)
    except queue.Empty:
        with contextlib.suppress(OSError):
            router.w_terminator.send(b"\0")  # ends the router's thread, which closes the connection
        raise NoAnswer(f"no answer within {TIMEOUT:.0f} s") from None
    if isinstance(result, NoAnswer):
        raise result
    return result


def _read(client: Any) -> list[CheckResult]:
    results = list(_domid(client))
    unreadable = []
    for domid in _children(client, *KINDS):
        name, error = _value(client, f"/local/domain/{domid}/name")
        if error:
            unreadable.append(domid)
        guest = f"guest {name}, domain {domid}" if name else f"domain {domid}"
        for kind in KINDS:
            for number in _children(client, f"{kind}/{domid}"):
                results.append(_device(client, f"{guest}: {kind} {number}", f"backend/{kind}/{domid}/{number}"))
    if unreadable:
        results.append(
            warning(
                f"the names of these domains cannot be read: {', '.join(unreadable)}; no [guest.NAME] applies to them",
                "in Dom0, xenstore-chmod lets a driver domain read them: see docs/security.md",
            )
        )
    return results


def _domid(client: Any) -> Iterator[CheckResult]:
    domid, error = _value(client, "domid")
    if error:
        yield warning(
            f"XenStore answers, but this domain's id cannot be read ({error}); displbe assumes that it is Dom0",
            "xen-init-dom0 writes the node domid in Dom0, xl in other domains; xenstore-ls -p shows who may read it",
        )
    else:
        yield passed(f"XenStore answers; this is domain {domid}")


def _device(client: Any, device: str, path: str) -> CheckResult:
    """Return the result for one device, from its nodes."""
    error, _ = _value(client, f"{path}/error")
    if error:
        return warning(f"{device}: error: {error[:MAX_ERROR]}", "see docs/troubleshooting.md, and displbectl status")
    ours = _state(client, path)
    if ours is State.INITIALISING:
        return warning(f"{device}: no backend has answered yet", "start displbe: systemctl start displbe")
    frontend, _ = _value(client, f"{path}/frontend")
    theirs = _state(client, frontend) if frontend else None
    return passed(f"{device}: backend {_name(ours)}, frontend {_name(theirs)}")


def _state(client: Any, path: str) -> State | None:
    value, error = _value(client, f"{path}/state")
    return None if error else parse_state(value.encode())


def _name(state: State | None) -> str:
    return "missing" if state is None else state.name.lower()


def _children(client: Any, *below: str) -> list[str]:
    """Return the numeric names (`7`, not `07`) of the nodes below these directories of `backend`, in the order of the numbers."""
    import pyxs

    found = set[str]()
    for path in below:
        try:
            found |= {name.decode("ascii", "replace") for name in client.list(f"backend/{path}".encode())}
        except pyxs.exceptions.ConnectionError:
            raise
        except pyxs.PyXSError:  # there is no such directory
            pass
    return sorted((name for name in found if parse_number(name.encode()) is not None), key=int)


def _value(client: Any, path: str) -> tuple[str, str]:
    """Return a node's value and an empty reason, or an empty value and the reason why the node cannot be read."""
    import pyxs

    try:
        return client.read(path.encode()).decode("utf-8", "replace"), ""
    except pyxs.exceptions.ConnectionError:
        raise
    except pyxs.PyXSError as error:
        return "", str(error.args[-1])

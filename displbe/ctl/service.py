"""What the unit of displbe's service says: its user, limits and environment; and a context in which root has only that user's rights."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from displbe.resources import ProcessLimits, half_of_memory, parse_limit

__all__ = ["Identity", "acting_as", "service_environment", "service_identity", "service_limits"]

SHOW: Final = ("systemctl", "show", "--property=User,Group,SupplementaryGroups", "displbe.service")
SHOW_LIMITS: Final = ("systemctl", "show", "--property=LoadState,LimitNOFILE,TasksMax,MemoryMax", "displbe.service")
SHOW_ENVIRONMENT: Final = ("systemctl", "show", "--property=LoadState,Environment", "displbe.service")


class Identity(msgspec.Struct, frozen=True):
    """A user, and all groups of the user's processes."""

    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def service_identity(command: Sequence[str] = SHOW) -> Identity | None:
    """Return the unit's user and groups, including drop-ins; None when the unit does not exist, sets no user, or systemctl fails.

    Raises LookupError, with a sentence, for a user or a group that does not exist.
    """
    unit = _properties(command)
    if not unit.get("User"):
        return None
    user = _user(unit["User"])
    gid = _group(unit["Group"]) if unit.get("Group") else user.pw_gid
    more = [_group(name) for name in unit.get("SupplementaryGroups", "").split()]
    return Identity(user.pw_name, user.pw_uid, gid, tuple(sorted({*os.getgrouplist(user.pw_name, gid), *more})))


def service_limits(command: Sequence[str] = SHOW_LIMITS) -> ProcessLimits | None:
    """Return the unit's limits, including drop-ins; None when the unit does not exist, or systemctl fails."""
    unit = _properties(command)
    if unit.get("LoadState") != "loaded":
        return None
    files, threads, memory = (parse_limit(unit.get(name, "")) for name in ("LimitNOFILE", "TasksMax", "MemoryMax"))
    return ProcessLimits(files, threads, memory, half_of_memory())


def service_environment(command: Sequence[str] = SHOW_ENVIRONMENT) -> dict[str, str] | None:
    """Return the variables that the unit sets, including drop-ins; None when the unit does not exist, or systemctl fails.

    systemctl quotes an assignment that has spaces, as a shell does.
    """
    unit = _properties(command)
    if unit.get("LoadState") != "loaded":
        return None
    try:
        assignments = shlex.split(unit.get("Environment", ""))
    except ValueError:
        return {}
    return dict(each.split("=", 1) for each in assignments if "=" in each)


def _properties(command: Sequence[str]) -> dict[str, str]:
    """Return the properties that `systemctl show` prints; none if it fails."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        raise LookupError(f"displbe.service runs as {name}, but there is no such user") from None


def _group(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise LookupError(f"displbe.service has the group {name}, but there is no such group") from None


@contextlib.contextmanager
def acting_as(identity: Identity | None) -> Iterator[None]:
    """Replace root's rights by this user's rights while the block lasts. With None, nothing changes. All threads are affected."""
    if identity is None:
        yield
        return
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups(identity.groups)
    try:
        os.setegid(identity.gid)
        os.seteuid(identity.uid)  # last, because only root may change the others
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)

"""Boots the lab, Xen and Dom0 inside qemu-system-aarch64, and controls it: commands, files, guests, pictures of screens.

The remote end in Dom0 (`dom0/remote.py`) executes one request at a time. A command that must run beside others is started with `start`.

The machine has one processor. Its clock counts instructions, 4 ns each, and skips the time in which it is idle; between requests it stands
still. So the time of Xen, Dom0 and the guests, and each figure, does not depend on what else the host does. Only the answers of disks and
cards do.
To try things by hand: `python3 tests/lab/vm.py` boots the lab and runs each line of its stdin in Dom0.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import shlex
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.build import Pieces, build
from lab.pictures import Picture

__all__ = ["Card", "LabError", "Machine", "Result", "guest_config", "reference_picture", "tarball"]

SLOWER: Final = 10
"""The factor by which time limits are multiplied in the machine. Its one processor is slow, and its clock runs on while a disk's answer is
waited for."""
SAME: Final = "quiet nokaslr norandmaps"
"""Arguments of all kernels. A program that lies at the same addresses each time is translated once by the emulator."""
# sleep=off: an idle machine goes on to its next timer at once. With sleep=on it would wait in the host's time, and a host that is
# late would make timers late. With more than one processor Xen does not boot so.
COUNTED: Final = ("-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=2,sleep=off")
"""QEMU's arguments for one processor whose clock counts instructions."""
PATIENCE: Final = 900.0
"""Seconds of the host's time that one request may take until Dom0 counts as lost."""
QUICK: Final = 120.0
"""Seconds of the host's time that QEMU itself may take: to open its sockets, and to answer its monitor."""


class LabError(Exception):
    """The lab did not do what was requested; the text has its output."""


@dataclass(frozen=True)
class Result:
    """The result of a command in Dom0. A command that ran out of time has code 124."""

    code: int
    output: str
    seconds: float
    """Seconds that the command took inside Dom0."""


@dataclass(frozen=True)
class Card:
    """A graphics card of Dom0."""

    name: str
    """The card's name in `/dev/dri`, such as `card0`."""
    bus: str
    """The argument for modetest's `-D`."""

    @property
    def node(self) -> str:
        return f"/dev/dri/{self.name}"


@dataclass
class Machine:
    """The emulated computer. It runs while the `with` block lasts.

    The serial log, the pictures and Dom0's logs are kept in `out`; without it, they are deleted at the end. Each of `gpus`
    is the QEMU id of a graphics card with one screen; the first one is Dom0's card0. `devices` are further `-device`
    arguments; `bootargs` is added to the command line of Dom0's kernel, and `xenargs` to Xen's.
    """

    out: Path | None = None
    pieces: Pieces | None = None
    gpus: Sequence[str] = ("gpu0",)
    devices: Sequence[str] = ()
    outputs: int = 1
    """Screens of each graphics card. QEMU has no monitor for the second and later ones: they must be forced on in `bootargs`."""
    second_disk: bool = False
    """Whether Dom0 has a copy of its disk, `/dev/vdb`, from which another domain can boot."""
    bootargs: str = ""
    xenargs: str = ""
    memory: int = 2048
    dom0_memory: int = 1024
    patience: float = 900
    """Seconds of the host's time that the boot may take."""

    boot_seconds: float = field(default=0, init=False)
    clock: float = field(default=0, init=False)
    """Seconds of Dom0's CLOCK_MONOTONIC at the end of the last request."""
    _closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False, repr=False)
    _lost: bool = field(default=False, init=False, repr=False)

    def __enter__(self) -> Machine:
        with contextlib.ExitStack() as stack:
            self._work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="displbe-lab-")))
            self.serial = (self.out or self._work) / "serial.log"
            self.serial.parent.mkdir(parents=True, exist_ok=True)
            command = [*self._command(), *self._common_arguments()]
            begun = time.monotonic()
            self._boot(command, stack)
            self._closing = stack.pop_all()
        try:
            self._until_ready()
        except BaseException:
            self._closing.close()
            raise
        self.qmp("stop")
        self.boot_seconds = time.monotonic() - begun
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Switch the computer off. Its disk is a throw-away copy, so nothing needs to be shut down first."""
        self._closing.close()

    # Commands and files in Dom0

    def run(self, command: str, timeout: float = 60) -> Result:
        """Run a bash command in Dom0, for at most `timeout` seconds (times SLOWER)."""
        fields, output = self._ask(do="run", command=command, timeout=SLOWER * timeout)
        return Result(int(fields["code"]), output.decode(errors="replace"), float(fields["seconds"]))

    def check(self, command: str, timeout: float = 60) -> str:
        """Run a command in Dom0 that must succeed. Return its output. Raises LabError."""
        return self._done(command, timeout).output

    def timed(self, command: str, timeout: float = 60) -> float:
        """Run a command in Dom0 that must succeed. Return the seconds from its start to its end. Raises LabError.

        A difference of `clock` has the time before the command too, in which the host stops the machine and lets it go on.
        """
        return self._done(command, timeout).seconds

    def _done(self, command: str, timeout: float) -> Result:
        done = self.run(command, timeout)
        if done.code != 0:
            raise LabError(f"in Dom0: {command}: exit {done.code} after {done.seconds:.1f} s\n{done.output[-6000:]}")
        return done

    def start(self, command: str, log: str = "/dev/null") -> int:
        """Start a bash command that runs beside the others, with its output in a file. Return the id of its process group."""
        shell = f"exec setsid bash -c {shlex.quote(command)} </dev/null >{shlex.quote(log)} 2>&1"
        return int(self.check(f"{{ {shell}; }} & echo $!"))

    def running(self, group: int) -> bool:
        """Return whether a process of this group is left."""
        return self.run(f"pgrep -g {group} -r D,I,R,S,T").code == 0

    def stop(self, group: int, signal: str = "TERM", timeout: float = 30) -> None:
        """End a process group that `start` returned."""
        self.run(f"kill -{signal} -- -{group}")
        self.wait_for(lambda: not self.running(group), timeout, why=f"end of process group {group} after SIG{signal}")

    def put(self, path: str, data: bytes | str) -> None:
        """Write a file in Dom0. Its folder is created."""
        self._ask(data.encode() if isinstance(data, str) else data, do="put", path=path)

    def get(self, path: str) -> bytes:
        """Read a file of Dom0."""
        return self._ask(do="get", path=path)[1]

    def put_tree(self, tar: bytes, under: str) -> None:
        """Unpack a tar file into a folder of Dom0. The folder is created."""
        packed = "/tmp/.put_tree.tar"
        self.put(packed, tar)
        place = shlex.quote(under)
        self.check(f"mkdir -p {place} && busybox tar -xf {packed} -C {place}; code=$?; rm {packed}; exit $code")

    def held(self, pid: int, program: str) -> list[int]:
        """Return what a process of Dom0 holds: open files, mappings of grants, event channels, dma-bufs."""
        return list(map(int, self._ask(do="held", pid=pid, program=program)[0]["held"]))

    def sleep(self, seconds: float) -> None:
        """Let the machine run for so long. It stands still between requests."""
        self._ask(do="sleep", seconds=seconds)

    def wait_for(
        self, what: str | Callable[[], object], timeout: float = 60, *, every: float = 0.3, why: str = ""
    ) -> None:
        """Wait until a command in Dom0 succeeds, or a function here returns true. Raises LabError."""
        timeout *= SLOWER
        said = ""
        if callable(what):
            until = self.clock + timeout
            while not (done := bool(what())) and self.clock < until:
                self.sleep(every)
        else:
            fields, output = self._ask(do="wait", command=what, every=every, timeout=timeout)
            done, said = fields["code"] == 0, output.decode(errors="replace")[-2000:]
        if not done:
            raise LabError(f"waited {timeout:g} s in vain for {why or what}\n{said}")

    # Guests

    def create(self, name: str, config: str, timeout: float = 90) -> int:
        """Create a guest. The log of its console begins anew. Return its domain id."""
        path = f"/root/guests/{name}.cfg"
        self.put(path, f"name={json.dumps(name)}\n{config}")
        self.check(f"rm -f /var/log/xen/guest-{name}.log && xl create {path}", timeout)
        domid = self.domid(name)
        assert domid is not None
        return domid

    def domid(self, name: str) -> int | None:
        """Return a domain's id. None: there is no domain of this name."""
        domid = self._ask(do="domain", name=name)[0]["domid"]
        return None if domid is None else int(domid)

    def exists(self, name: str) -> bool:
        """Return whether there is a guest of this name."""
        return self.domid(name) is not None

    def destroy(self, name: str, timeout: float = 60) -> None:
        """Destroy a guest, if there is one of this name."""
        if self.exists(name):
            self.run(f"xl destroy {name}", timeout)
            self.wait_for(lambda: not self.exists(name), timeout, why=f"the end of guest {name}")

    def console(self, name: str) -> str:
        """Return the text that a guest has written to its console since it was created."""
        return self._console(name, "", 0, 0)[1]

    def wait_console(self, name: str, text: str, timeout: float = 60, count: int = 1) -> str:
        """Wait until a guest's console contains a text `count` times. Return the console's text. Raises LabError."""
        timeout *= SLOWER
        found, seen = self._console(name, text, count, timeout)
        if not found:
            raise LabError(f"guest {name} did not write {text!r} in {timeout:g} s; its console:\n{seen[-4000:]}")
        return seen

    def _console(self, name: str, text: str, count: int, timeout: float) -> tuple[bool, str]:
        path = f"/var/log/xen/guest-{name}.log"
        fields, seen = self._ask(do="wait text", path=path, text=text, count=count, timeout=timeout)
        return bool(fields["found"]), seen.decode(errors="replace")

    # Screens

    def qmp(self, command: str, **arguments: object) -> Any:
        """Execute a command of QEMU's monitor (QMP). Return its result. Raises LabError."""
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self._monitor_line()
            if "error" in answer:
                raise LabError(f"QEMU: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def screendump(self, device: str | None = None, name: str | None = None) -> Picture:
        """Return the picture on a card's screen, by default the first card's. With a name, it is also written to `out/NAME.png`."""
        path = self._work / "screen.ppm"
        self.qmp("screendump", filename=str(path), device=device or self.gpus[0])
        picture = Picture.from_ppm(path.read_bytes())
        if name is not None and self.out is not None:
            picture.save(self.out / f"{name}.png")
        return picture

    def expect_picture(
        self, wanted: Picture, name: str, device: str | None = None, timeout: float = 30, tolerated: int = 0
    ) -> Picture:
        """Wait until a screen shows this picture. Raises LabError.

        The last picture is written to `out/NAME.png`; `NAME-wrong.png` marks wrong pixels.
        """
        until = self.clock + SLOWER * timeout
        while (wrong := (seen := self.screendump(device)).differs(wanted)) > tolerated and self.clock < until:
            self.sleep(0.3)
        if self.out is not None:
            seen.save(self.out / f"{name}.png")
        if wrong <= tolerated:
            return seen
        if self.out is not None:
            wanted.save(self.out / f"{name}-wanted.png")
            if seen.size == wanted.size:
                seen.difference(wanted).save(self.out / f"{name}-wrong.png")
        raise LabError(
            f"{name}: the screen shows {seen.width}x{seen.height} with {wrong} wrong pixels "
            f"(wanted {wanted.width}x{wanted.height}); look at {self.out}/{name}*.png"
        )

    def card(self, device: str | None = None) -> Card:
        """Return Dom0's card for one of `gpus`, by default the first."""
        wanted = device or self.gpus[0]
        tree = str(self.qmp("human-monitor-command", **{"command-line": "info qtree"}))
        place = ""
        for line in tree.splitlines():
            if found := re.match(r"\s+mmio ([0-9a-f]+)/", line):
                place = f"{int(found[1], 16):x}.virtio_mmio"
            elif re.search(rf'dev: virtio-gpu-device, id "{re.escape(wanted)}"', line):
                nodes = self.check("readlink -f /sys/class/drm/card[0-9]").split()
                return next(Card(Path(node).name, place) for node in nodes if f"/{place}/" in node)
        raise LabError(f"QEMU has no virtio-gpu-device {wanted!r}\n{tree}")

    def connectors(self, device: str | None = None) -> dict[str, bool]:
        """Return the names of a card's connectors, and whether a screen is connected. The kernel's names are unique."""
        card = self.card(device).name
        # The status is `unknown` until the driver has been asked to detect.
        detect = "echo detect >$c/status; echo $c $(cat $c/status)"
        listed = self.check(f"cd /sys/class/drm; for c in {card}-*; do {detect}; done")
        pairs = (line.split() for line in listed.splitlines())
        return {name.removeprefix(f"{card}-"): status == "connected" for name, status in pairs}

    # At the end

    def keep_logs(self) -> None:
        """Copy Dom0's and the guests' logs into `out`, for people."""
        if self.out is None:
            return
        (self.out / "dmesg.log").write_text(self.run("dmesg").output + self.run("xl dmesg").output)
        for path in self.run("ls -d /var/log/xen/*.log /var/log/*.log").output.split():
            if path.startswith("/var/log/"):
                (self.out / Path(path).name).write_bytes(self.get(path))

    # Implementation

    def _boot(self, command: Sequence[str], stack: contextlib.ExitStack) -> None:
        # setpriv: QEMU is killed when this process dies for any reason.
        argv = ["setpriv", "--pdeathsig", "KILL", *command]
        with open(self._work / "qemu.log", "wb") as said:
            nothing = subprocess.DEVNULL
            self._qemu = subprocess.Popen(argv, stdin=nothing, stdout=said, stderr=said, process_group=0)
        stack.callback(self._end_qemu)
        self._remote = stack.enter_context(self._connect("remote.sock"))
        self._monitor = stack.enter_context(self._connect("qmp.sock"))
        self._monitor_text = stack.enter_context(self._monitor.makefile("rb"))
        self._pending = bytearray()
        self._monitor_line()
        self.qmp("qmp_capabilities")

    def _until_ready(self) -> None:
        """Wait until Dom0's remote end is there."""
        self._answer(self.patience, "booting Dom0")

    def _common_arguments(self) -> Iterator[str]:
        yield from COUNTED
        yield from ("-m", str(self.memory), "-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none")
        yield from ("-serial", f"file:{self.serial}")
        yield from ("-qmp", f"unix:{self._work}/qmp.sock,server=on,wait=off")

    def _command(self) -> Iterator[str]:
        """The emulator, with the arguments that only this architecture has."""
        pieces = self.pieces or build()
        if not os.path.exists("/dev/udmabuf"):
            yield from ("env", f"LD_PRELOAD={pieces.shim}")
        yield "qemu-system-aarch64"
        # nohz=off: the clock of an idle machine goes on by a tick at most while a disk's answer is waited for.
        boot = (
            f"console=hvc0 root=/dev/vda rw vkms.create_default_dev=0 init=/init.dom0 nohz=off {SAME} {self.bootargs}"
        )
        xen = f"dom0_mem={self.dom0_memory}M console=dtuart dtuart=/pl011@9000000 noreboot {self.xenargs}".strip()
        yield from ("-cpu", "cortex-a57")
        yield from ("-object", f"memory-backend-memfd,id=mem,size={self.memory}M,share=on")
        # gic-version=3: with 2, interrupts of virtio devices get lost.
        yield from ("-machine", "virt,virtualization=on,gic-version=3,memory-backend=mem")
        yield from ("-kernel", str(pieces.xen), "-append", xen)
        boot = boot.replace(",", ",,")
        yield from ("-device", f"guest-loader,addr=0x60000000,kernel={pieces.kernel},bootargs={boot}")
        yield from ("-global", "virtio-mmio.force-legacy=false")
        # Linux finds the last virtio-mmio device first.
        for disk in ("disk2", "disk1") if self.second_disk else ("disk1",):
            yield from ("-drive", f"file={pieces.disk},if=none,id={disk},format=raw,cache=unsafe,snapshot=on")
            # iommu_platform=on: without it the drivers hand the devices wrong addresses for foreign pages.
            yield from ("-device", f"virtio-blk-device,drive={disk},iommu_platform=on")
        yield from ("-device", "virtio-serial-device,iommu_platform=on")
        yield from self._remote_port(wait=False)
        for name in reversed(self.gpus):
            yield from ("-device", f"virtio-gpu-device,id={name},max_outputs={self.outputs},iommu_platform=on,blob=on")
        for device in self.devices:
            yield from ("-device", device)

    def _remote_port(self, wait: bool) -> Iterator[str]:
        listen = f"server=on,wait={'on' if wait else 'off'}"
        yield from ("-chardev", f"socket,id=remote,path={self._work}/remote.sock,{listen}")
        yield from ("-device", "virtserialport,chardev=remote,nr=1,name=displbe.remote")

    def _connect(self, name: str) -> socket.socket:
        until = time.monotonic() + QUICK
        while True:
            end = socket.socket(socket.AF_UNIX)
            try:
                end.connect(str(self._work / name))
            except OSError:
                end.close()
                self._alive("starting QEMU")
                if time.monotonic() > until:
                    raise self._failure(f"QEMU does not answer on {name}") from None
                time.sleep(0.05)
            else:
                return end

    def _end_qemu(self) -> None:
        if self._qemu.poll() is None:
            self._qemu.terminate()
            try:
                self._qemu.wait(10)
            except subprocess.TimeoutExpired:
                self._qemu.kill()
        self._qemu.wait()

    def _alive(self, doing: str) -> None:
        if (code := self._qemu.poll()) is not None:
            raise self._failure(f"QEMU ended with {code} while {doing}")

    def _failure(self, what: str) -> LabError:
        def tail(path: Path) -> str:
            return path.read_bytes()[-5000:].decode(errors="replace").replace("\r", "") if path.exists() else ""

        return LabError(f"{what}\n--- QEMU\n{tail(self._work / 'qemu.log')}\n--- serial console\n{tail(self.serial)}")

    def _monitor_line(self) -> dict[str, Any]:
        self._monitor.settimeout(QUICK)
        try:
            line = self._monitor_text.readline()
        except TimeoutError:
            line = b""
        if not line:
            raise self._failure("QEMU's monitor does not answer")
        return dict(json.loads(line))

    def _ask(self, payload: bytes = b"", **fields: object) -> tuple[dict[str, Any], bytes]:
        if self._lost:
            raise LabError("Dom0 was lost in an earlier request, which may still be under way")
        head = json.dumps({**fields, "size": len(payload)}).encode() + b"\n"
        doing = f"asking Dom0 to {fields['do']} {fields.get('path') or fields.get('command')}"
        self._lost = True  # until the answer has arrived
        self.qmp("cont")
        self._remote.settimeout(PATIENCE)
        try:
            self._remote.sendall(head + payload)
        except OSError as error:
            self._alive(doing)
            raise self._failure(f"{doing}: {error}") from None
        answer = self._answer(PATIENCE, doing)
        self.qmp("stop")
        self._lost = False
        self.clock = float(answer[0]["clock"])
        if "error" in answer[0]:
            raise LabError(f"{doing}: {answer[0]['error']}")
        return answer

    def _answer(self, timeout: float, doing: str) -> tuple[dict[str, Any], bytes]:
        until = time.monotonic() + timeout
        while (end := self._pending.find(b"\n")) < 0:
            self._receive(until, doing)
        fields: dict[str, Any] = json.loads(self._pending[:end])
        del self._pending[: end + 1]
        size = int(fields["size"])
        while len(self._pending) < size:
            self._receive(until, doing)
        payload = bytes(self._pending[:size])
        del self._pending[:size]
        return fields, payload

    def _receive(self, until: float, doing: str) -> None:
        while not select.select([self._remote], [], [], 1)[0]:
            self._alive(doing)
            if time.monotonic() > until:
                raise self._failure(f"no answer while {doing}")
        data = self._remote.recv(1 << 20)
        if not data:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._qemu.wait(5)
            self._alive(doing)
            raise self._failure(f"the line to Dom0 broke while {doing}")
        self._pending += data


def guest_config(
    work: str = "still",
    lines: str = "",
    *,
    mode: str = "1024x768",
    seconds: int = 600,
    extra: str = "",
    kind: str = "pvh",
    memory: int = 192,
) -> str:
    """Return the xl configuration of the lab's guest. `work` is its task (see `domu/init.sh`), `lines` are further lines."""
    boot = f"console=hvc0 vkms.create_default_dev=0 guest={work} mode={mode} seconds={seconds} {SAME} {extra}".strip()
    return (
        f'type="{kind}"\nkernel="/domu/vmlinuz"\nramdisk="/domu/initrd.img"\n'
        f"memory={memory}\nvcpus=1\nextra={json.dumps(boot)}\n{lines}\n"
    )


def reference_picture(
    machine: Machine,
    mode: str = "1024x768",
    pattern: str = "smpte",
    device: str | None = None,
) -> Picture:
    """Return modetest's picture, drawn by Dom0's own modetest on a card that no other program uses.

    The guest's modetest shows `smpte`; with `-v`, it flips between `smpte` and `plain`.
    """
    before = machine.screendump(device)
    width, height = map(int, mode.split("x"))
    log = "/tmp/.reference.log"
    connector = next(name for name, connected in machine.connectors(device).items() if connected)
    # modetest shows its picture until its stdin has a line or ends.
    card = machine.card(device).bus
    draw = f"exec modetest -D {card} -s {connector}:{mode} -F {pattern} < <(exec sleep 1000)"
    group = machine.start(draw, log)
    seen = [before]

    def settled() -> bool:
        if machine.run(f"test -e /proc/{group}").code != 0:
            raise LabError(f"modetest does not show {pattern}: {machine.run(f'cat {log}').output}")
        seen.append(machine.screendump(device))
        return seen[-1].size == (width, height) and seen[-1] == seen[-2] != before

    try:
        machine.wait_for(settled, 30, why=f"modetest's {pattern} in {mode}")
    finally:
        machine.stop(group)
    return seen[-1]


def tarball(root: Path, names: Iterable[str], more: Mapping[str, bytes]) -> bytes:
    """Return files and folders under `root` as a tar file, without caches and this machine's compiled code; and more files, by name."""

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = Path(entry.name).name
        return None if name == "__pycache__" or name.endswith(("_cache", ".so")) or name == ".hypothesis" else entry

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            tar.add(root / name, name, filter=wanted)
        for name, data in more.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def main(kind: type[Machine] = Machine) -> None:
    out = Path(__file__).resolve().parents[2] / "out" / "lab"
    with kind(out=out) as machine:
        print(f"ready after {machine.boot_seconds:.1f} s; serial console: {machine.serial}", flush=True)
        for line in sys.stdin:
            if line.startswith("screendump"):
                print(machine.screendump(name=line.split()[-1]), flush=True)
            elif line.strip():
                done = machine.run(line, 600)
                print(f"{done.output}[{done.code}, {done.seconds:.2f} s]", flush=True)


if __name__ == "__main__":
    main()

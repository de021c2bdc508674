"""Dom0's half of the lab: does what the host asks over a virtio-serial port.

A message is a line of JSON with its length in bytes of payload, then the payload, in both directions.
"""

import json
import os
import select
import signal
import struct
import subprocess
import sys
import time


def run(command: str, timeout: float) -> tuple[int, bytes, float]:
    """Exit code, output and seconds. The output goes to a file: what the command leaves running may keep its stdout."""
    out = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
    try:
        begun = time.monotonic()
        child = subprocess.Popen(
            ["/bin/bash", "-c", command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
        ended = os.pidfd_open(child.pid)
        late = not select.select([ended], [], [], timeout)[0]
        seconds = time.monotonic() - begun
        os.close(ended)
        if late:
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
        return 124 if late else code, os.pread(out, os.fstat(out).st_size, 0), seconds
    finally:
        os.close(out)


def wait(command: str, every: float, timeout: float) -> tuple[int, bytes, float]:
    """Run a command every so many seconds until it succeeds. Return the last try's exit code and output, and the seconds that all took."""
    begun = time.monotonic()
    while True:
        left = begun + timeout - time.monotonic()
        code, output, _ = run(command, max(left, every))
        if code == 0 or left <= 0:
            return code, output, time.monotonic() - begun
        time.sleep(every)


def wait_text(path: str, text: bytes, count: int, timeout: float) -> tuple[bool, bytes]:
    """Wait until a file contains a text so many times. Return whether it does, and the file's content, with lines that end in \\n."""
    until = time.monotonic() + timeout
    while True:
        late = time.monotonic() > until
        try:
            with open(path, "rb") as log:
                found = log.read().replace(b"\r\n", b"\n")
        except FileNotFoundError:
            found = b""
        if late or found.count(text) >= count:
            return found.count(text) >= count, found
        time.sleep(0.1)


def xenstore(operation: int, path: str) -> list[str]:
    """Return what XenStore has at a path, without a process (xs_wire.h): `operation` is XS_DIRECTORY or XS_READ."""
    body = path.encode() + b"\0"
    with open("/dev/xen/xenbus", "r+b", buffering=0) as device:
        device.write(struct.pack("=4I", operation, 0, 0, len(body)) + body)
        got, _, _, size = struct.unpack("=4I", device.read(16))
        said = device.read(size).decode() if size else ""
    return said.rstrip("\0").split("\0") if got == operation else []


def domain(name: str) -> int | None:
    """Return a domain's id. None: there is no domain of this name."""
    for domid in xenstore(1, "/local/domain"):
        if xenstore(2, f"/local/domain/{domid}/name") == [name]:
            return int(domid)
    return None


def lines(path: str, text: str) -> int:
    """Return how many lines of a file contain a text."""
    with open(path) as file:
        return sum(text in line for line in file)


def held(pid: int, program: str) -> list[int]:
    """Return what a process holds: open files, mappings of grants, event channels, dma-bufs."""
    return [
        len(os.listdir(f"/proc/{pid}/fd")),
        lines(f"/proc/{pid}/maps", "xen/gntdev"),
        lines("/proc/interrupts", f"evtchn:{program}"),
        lines("/sys/kernel/debug/dma_buf/bufinfo", "xen_gntdev"),
    ]


def main(path: str) -> None:
    port = os.open(path, os.O_RDWR)
    stream = os.fdopen(os.dup(port), "rb", buffering=65536)

    def answer(payload: bytes = b"", **fields: object) -> None:
        fields["clock"] = time.monotonic()
        data = memoryview(json.dumps({**fields, "size": len(payload)}).encode() + b"\n" + payload)
        while data:
            data = data[os.write(port, data[:32768]) :]

    answer(ready=True)
    while line := stream.readline():
        ask = json.loads(line)
        payload = stream.read(ask["size"])
        try:
            if ask["do"] == "put":
                os.makedirs(os.path.dirname(ask["path"]), exist_ok=True)
                with open(ask["path"], "wb") as f:
                    f.write(payload)
                answer()
            elif ask["do"] == "get":
                with open(ask["path"], "rb") as g:
                    answer(g.read())
            elif ask["do"] == "run":
                code, output, seconds = run(ask["command"], ask["timeout"])
                answer(output, code=code, seconds=seconds)
            elif ask["do"] == "wait":
                code, output, seconds = wait(ask["command"], ask["every"], ask["timeout"])
                answer(output, code=code, seconds=seconds)
            elif ask["do"] == "wait text":
                found, content = wait_text(ask["path"], ask["text"].encode(), ask["count"], ask["timeout"])
                answer(content, found=found)
            elif ask["do"] == "domain":
                answer(domid=domain(ask["name"]))
            elif ask["do"] == "held":
                answer(held=held(ask["pid"], ask["program"]))
            elif ask["do"] == "sleep":
                time.sleep(ask["seconds"])
                answer()
            else:
                return
        except OSError as error:
            answer(error=str(error))


main(sys.argv[1])

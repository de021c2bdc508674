"""displbe's codecs and numbers against protocol/vectors/displif.json, and that file against Xen's headers."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from displbe.wire import displif, errors, pgdir, ring, xenbus, xs

PROTOCOL: Final = Path(__file__).parents[2] / "protocol"
VECTORS: Final[dict[str, Any]] = json.loads((PROTOCOL / "vectors" / "displif.json").read_text("ascii"))

REQUESTS: Final[dict[str, type[displif.Known]]] = {
    "DBUF_CREATE": displif.DbufCreate,
    "DBUF_DESTROY": displif.DbufDestroy,
    "FB_ATTACH": displif.FbAttach,
    "FB_DETACH": displif.FbDetach,
    "SET_CONFIG": displif.SetConfig,
    "PG_FLIP": displif.PageFlip,
    "GET_EDID": displif.GetEdid,
}


def values(vector: dict[str, Any]) -> dict[str, int]:
    """A vector's fields by name."""
    return {field["name"]: field["value"] for field in vector["fields"]}


@pytest.mark.parametrize(("program", "file"), [("generate.c", "displif.json"), ("kbdif.c", "kbdif.json")])
def test_the_headers_still_say_so(tmp_path: Path, program: str, file: str) -> None:
    """The programs, compiled against the installed headers, print the files that are checked in."""
    compiler = shutil.which("cc")
    assert compiler, "no C compiler: install gcc (or another `cc`) to check protocol/vectors"
    built_program = tmp_path / "generate"
    source = PROTOCOL / "vectors" / program
    built = subprocess.run([compiler, "-o", built_program, source], capture_output=True, text=True, check=False)
    assert built.returncode == 0, f"cannot compile {source.name} (Xen's headers: install libxen-dev):\n{built.stderr}"
    printed = subprocess.run([built_program], capture_output=True, text=True, check=True).stdout
    assert printed == (PROTOCOL / "vectors" / file).read_text("ascii")


def test_sizes() -> None:
    assert set(VECTORS["sizes"].values()) == {displif.MESSAGE_SIZE}


def test_operations() -> None:
    assert {operation.name: operation.value for operation in displif.Operation} == VECTORS["operations"]


def test_constants() -> None:
    assert VECTORS["constants"]["DBUF_FLG_REQ_ALLOC"] == displif.REQ_ALLOC
    assert VECTORS["constants"]["EVT_PG_FLIP"] == displif.EVENT_PAGE_FLIP


def test_every_kind_of_request_has_a_vector() -> None:
    assert [values(vector)["operation"] for vector in VECTORS["requests"]] == list(displif.Operation)


@pytest.mark.parametrize(("name", "vector"), list(zip(REQUESTS, VECTORS["requests"], strict=True)))
def test_requests(name: str, vector: dict[str, Any]) -> None:
    fields = values(vector)
    kind = REQUESTS[name]
    assert fields.pop("operation") == kind.operation == VECTORS["operations"][name]
    request = kind(**fields)
    assert displif.decode_request(bytes.fromhex(vector["bytes"])) == request
    assert displif.encode_request(request).hex() == vector["bytes"]


@pytest.mark.parametrize("vector", VECTORS["responses"])
def test_responses(vector: dict[str, Any]) -> None:
    fields = {"edid_sz": 0} | values(vector)
    assert displif.decode_response(bytes.fromhex(vector["bytes"])) == displif.Response(**fields)
    encoded = displif.encode_response(fields["id"], fields["operation"], fields["status"], fields["edid_sz"])
    assert encoded.hex() == vector["bytes"]


@pytest.mark.parametrize("vector", VECTORS["events"])
def test_events(vector: dict[str, Any]) -> None:
    fields = values(vector)
    assert fields.pop("type") == displif.EVENT_PAGE_FLIP
    assert displif.decode_event(bytes.fromhex(vector["bytes"])) == displif.PageFlipEvent(**fields)
    assert displif.encode_event(fields["id"], fields["fb_cookie"]).hex() == vector["bytes"]


def test_the_vectors_tell_every_byte_apart() -> None:
    """No byte of a field occurs in another field of the same message: otherwise a swap could go unnoticed."""
    for vector in itertools.chain(VECTORS["requests"], VECTORS["responses"], VECTORS["events"]):
        filled = [byte for byte in bytes.fromhex(vector["bytes"]) if byte >= 0x80]
        assert len(filled) == len(set(filled))


def test_control_ring() -> None:
    assert VECTORS["control_ring"] == {
        "req_prod": ring._REQ_PROD,
        "req_event": ring._REQ_EVENT,
        "rsp_prod": ring._RSP_PROD,
        "rsp_event": ring._RSP_EVENT,
        "ring": ring._HEADER,
        "slot_size": displif.MESSAGE_SIZE,
        "slots": ring.REQUEST_SLOTS,
    }


def test_event_page() -> None:
    assert VECTORS["event_page"] == {
        "in_cons": ring._IN_CONS,
        "in_prod": ring._IN_PROD,
        "ring": ring._HEADER,
        "slot_size": displif.MESSAGE_SIZE,
        "slots": ring.EVENT_SLOTS,
        "page_size": ring.PAGE_SIZE,
    }


def test_page_directory() -> None:
    layout = VECTORS["page_directory"]
    assert layout["refs_per_page"] == pgdir.REFS_PER_PAGE
    refs = [0x1000 + number for number in range(pgdir.REFS_PER_PAGE + 2)]
    first, last = pgdir.encode_directory(refs, [0xA1, 0xB2])
    at = struct.Struct("<I").unpack_from
    assert at(first, layout["gref_dir_next_page"]) == (0xB2,)
    assert at(last, layout["gref_dir_next_page"]) == (0,)
    where = range(layout["gref"], ring.PAGE_SIZE, layout["ref_size"])
    assert [at(first, offset)[0] for offset in where] == refs[: pgdir.REFS_PER_PAGE]
    assert [at(last, offset)[0] for offset in where][:3] == [*refs[pgdir.REFS_PER_PAGE :], 0]


def test_error_numbers() -> None:
    assert {number.name: number.value for number in errors.Errno} == VECTORS["errors"]


def test_xenbus_states() -> None:
    ours = {state.name.replace("_", "").lower(): state.value for state in xenbus.State}
    assert ours == {name.lower(): value for name, value in VECTORS["xenbus_states"].items()}


def test_xenstore_types() -> None:
    assert {op.name: op.value for op in xs.Op} == VECTORS["xenstore_types"]


def test_xenstore_message() -> None:
    layout = VECTORS["xenstore_message"]
    message = xs.encode(xs.Op.WRITE, 0xA1A2A3A4, 0xB1B2B3B4, b"path\0value")
    assert len(message) == layout["size"] + 10
    assert layout["payload_max"] == xs.MAX_PAYLOAD
    header = {name: struct.unpack_from("=I", message, layout[name])[0] for name in ("type", "req_id", "tx_id", "len")}
    assert header == {"type": xs.Op.WRITE, "req_id": 0xA1A2A3A4, "tx_id": 0xB1B2B3B4, "len": 10}


def test_gntdev() -> None:
    from displbe.xen import gntdev

    for name, number in VECTORS["gntdev_ioctls"].items():
        assert getattr(gntdev, name) == number, name
    for ours, layout, names in (
        (gntdev._MAP, "gntdev_map", ("count", None, "index")),
        (gntdev._UNMAP, "gntdev_unmap", ("index", "count", None)),
        (gntdev._EXPORT, "gntdev_export", ("flags", "count", "fd", "domid")),
        (gntdev._IMPORT, "gntdev_import", ("fd", "count", "domid", "reserved")),
        (gntdev._PAIR, "gntdev_map", ("domid", "ref")),
        (gntdev._PAIR, "gntdev_wait_released", ("fd", "wait_to_ms")),
        (gntdev._PAIR, "gntdev_release", ("fd", "reserved")),
    ):
        check_layout(ours, VECTORS[layout], names)
    assert gntdev._MAP.size == VECTORS["gntdev_map"]["refs"]
    assert gntdev._PAIR.size == VECTORS["gntdev_map"]["ref_size"]
    assert gntdev._UNMAP.size == VECTORS["gntdev_unmap"]["size"]
    assert gntdev._EXPORT.size == VECTORS["gntdev_export"]["refs"]
    assert gntdev._IMPORT.size == VECTORS["gntdev_import"]["refs"]


def test_evtchn() -> None:
    from displbe.xen import evtchn

    for name in ("BIND_INTERDOMAIN", "UNBIND", "NOTIFY", "RESET"):
        assert getattr(evtchn, name) == VECTORS["evtchn_ioctls"][name], name
    layout = VECTORS["evtchn_bind"]
    check_layout(evtchn._PAIR, layout, ("remote_domain", "remote_port"))
    assert evtchn._PAIR.size == layout["size"]
    assert evtchn._PORT.size == layout["port_size"]


def check_layout(ours: struct.Struct, offsets: dict[str, int], names: tuple[str | None, ...]) -> None:
    """Each named field, packed by our struct, stands where the C struct has it."""
    packed = ours.pack(*range(1, len(names) + 1))
    for value, name in enumerate(names, 1):
        if name is not None:
            assert struct.unpack_from("=I", packed, offsets[name]) == (value,), name


# The prose of protocol/ is held to the same file.


def test_messages_md_has_every_field() -> None:
    """Under each message's heading, one row per field: | byte | type | name |."""
    text = (PROTOCOL / "messages.md").read_text("utf-8")
    sections = dict(re.findall(r"^#{2,3} `(\w+)`.*?\n(.*?)(?=^#|\Z)", text, re.M | re.S))
    vectors = dict(zip(REQUESTS, VECTORS["requests"], strict=True))
    header = ("id", "operation")
    for name, vector in (*vectors.items(), ("response", VECTORS["responses"][-1]), ("event", VECTORS["events"][0])):
        expected = {
            (str(field["offset"]), field["type"], field["name"])
            for field in vector["fields"]
            if name not in REQUESTS or field["name"] not in header
        }
        rows = re.findall(r"^\| (\d+) \| (\w+) \| `(\w+)` \|", sections[name], re.M)
        assert set(rows) == expected, name
        if name in REQUESTS:
            assert f"### `{name}` (0x{VECTORS['operations'][name]:02x})" in text


def test_xenstore_md_names_every_key() -> None:
    text = (PROTOCOL / "xenstore.md").read_text("utf-8")
    for key in VECTORS["xenstore_keys"].values():
        assert re.search(rf"^\| `(C/)?{key}` \|", text, re.M), key


def test_errors_md_has_every_number() -> None:
    numbers = re.findall(r"^\| (E[A-Z]+) \| (\d+) \|", (PROTOCOL / "errors.md").read_text("utf-8"), re.M)
    assert {name: int(number) for name, number in numbers} == VECTORS["errors"]

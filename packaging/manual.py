"""Generate the manual: the man pages and docs/configuration.md.

    python packaging/manual.py configuration >docs/configuration.md
    python packaging/manual.py man FOLDER            # displbe.8, displbe.toml.5, displbectl.1

Types and defaults come from the settings, descriptions from the comments of configs/displbe.toml, options from the programs' --help.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

TREE = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(TREE))

import displbe  # noqa: E402
from displbe import startup  # noqa: E402
from displbe.backend.guests import GuestSettings  # noqa: E402
from displbe.config import RELOADABLE, Settings  # noqa: E402
from displbe.sinks.drm.settings import ScreenSettings  # noqa: E402

__all__ = ["configuration", "man_pages", "settings"]

EXAMPLE = TREE / "configs" / "displbe.toml"
ABOUT = (
    "displbe shows the screens of Xen guests, and gives the guests keyboards, pointers and touch screens. It is the backend of Xen's"
    " paravirtual display and input devices (displif.h, kbdif.h). Their frontends are part of Linux (drm_xen_front, xen-kbdfront)."
    " displbe is a daemon in Dom0 or in a driver domain. It takes the frames from the guests' memory and shows them on the screens of"
    " this machine, or in windows of a Wayland compositor or an X server. It copies no pixels if the kernel and the driver allow that."
)
SEE_ALSO = {
    "displbe.8": ["displbe.toml(5)", "displbectl(1)", "xl.cfg(5)"],
    "displbe.toml.5": ["displbe(8)", "xl.cfg(5)"],
    "displbectl.1": ["displbe(8)", "displbe.toml(5)"],
}


@dataclass
class Key:
    """A key of the configuration, with its description."""

    name: str
    text: str
    kind: str = ""
    default: str = ""


@dataclass
class Section:
    """A table of the configuration. The name of the top-level table is empty."""

    name: str
    text: str
    keys: list[Key] = field(default_factory=list)


# Descriptions: configs/displbe.toml


def words() -> list[Section]:
    """Return the comments of the example as sections and keys. A key without a comment gets the comment of the previous key."""
    sections = [Section("", "")]
    comment: list[str] = []
    for line in EXAMPLE.read_text("utf-8").splitlines():
        if heading := re.fullmatch(r"(?:# )?\[([\w.]+)\]", line):
            sections.append(Section(heading[1], " ".join(comment)))
            comment = []
        elif key := re.fullmatch(r"(?:# )?([a-z-]+) = .+", line):
            keys = sections[-1].keys
            text = " ".join(comment) or (keys[-1].text if keys else "")
            keys.append(Key(key[1], text))
            comment = []
        elif line.startswith("# "):
            comment.append(line[2:].strip())
        elif not comment or sections[-1].keys or sections[-1].name:
            comment = []
        else:  # the head of the file
            sections[-1].text, comment = " ".join(comment), []
    return sections


# Types and defaults: the settings


def kind(of: Any) -> str:
    """Return the description of a type."""
    origin, arguments = typing.get_origin(of), typing.get_args(of)
    if origin is typing.Literal:
        return " | ".join(f'"{value}"' for value in arguments)
    if origin is list:
        return f"list of {kind(arguments[0])}s"
    if origin is dict:
        if arguments[1] is Any:
            return "table of keys for all, and of a table for each name"
        return f"table: a {kind(arguments[1])} for each name"
    return {str: "string", int: "number", float: "number", bool: "true | false"}[of]


def literal(value: Any) -> str:
    """Return a value in TOML syntax."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, dict) and value:
        return "{" + ", ".join(f"{key} = {literal(inner)}" for key, inner in value.items()) + "}"
    return "[]" if value == [] else str(value)


def fields(of: type) -> dict[str, tuple[str, Any, Any]]:
    """Return for each TOML name the Python name, the type and the default."""
    types = typing.get_type_hints(of)
    found = {}
    for entry in msgspec.structs.fields(of):
        made = entry.default_factory
        default = entry.default if made is msgspec.NODEFAULT else made()
        found[entry.encode_name] = entry.name, types[entry.name], default
    return found


def settings() -> list[Section]:
    """Return the whole configuration. Raises LookupError when the descriptions and the settings do not match."""
    told = words()
    top = fields(Settings)
    described = {section.name: section for section in told}
    tables: dict[str, type] = {"": Settings}
    for name, (_, of, _) in top.items():
        if name == "guest":
            tables["guest.NAME"] = GuestSettings
        elif isinstance(of, type) and issubclass(of, msgspec.Struct):
            tables[name] = of
            if name == "drm":
                tables["drm.screens"] = ScreenSettings
    made = []
    for name, of in tables.items():
        section = described["guest.cockpit" if name == "guest.NAME" else name]
        texts = {key.name: key.text for key in section.keys}
        made.append(Section(name, section.text))
        for key, (_, key_type, default) in fields(of).items():
            if not name and (key in tables or key == "guest"):
                continue
            text = described[f"{name}.{key}"].text if typing.get_origin(key_type) is dict else texts.pop(key)
            made[-1].keys.append(Key(key, text, kind(key_type), literal(default)))
        if texts:
            raise LookupError(f"{EXAMPLE.name}: [{name}] has no {', '.join(texts)}")
    return made


def reloading() -> str:
    """Return the paragraph about `systemctl reload`."""
    when = []
    for key, then in RELOADABLE.items():
        table, _, name = key.partition(".")
        what = f"`[{table}] {name}`" if name else "`[guest.NAME]`" if table == "guest" else f"all of `[{table}]`"
        when.append(f"{what} {then}")
    return (
        "SIGHUP (`systemctl reload displbe`) makes displbe read its configuration again while guests run. These changes take effect"
        f" without a restart: {', '.join(when)}. Other changes need a restart; the log names them. If the file has an error, displbe logs"
        " the error and keeps its present configuration."
    )


def configuration() -> str:
    """Return the text of docs/configuration.md."""
    lines = ["<!-- Made by packaging/manual.py from the settings and configs/displbe.toml: do not edit. -->", ""]
    lines += [
        "# The configuration",
        "",
        "The file is `/etc/displbe/displbe.toml`, in [TOML](https://toml.io). A key may be left out; then its default applies.",
    ]
    lines += [
        "An unknown key or a wrong value is an error; `displbe --check` reports it with its place in the file.",
        "",
        reloading(),
        "",
    ]
    for section in settings():
        if section.name:
            lines += [f"## `[{section.name}]`", ""]
        if section.name and section.text:
            lines += [section.text, ""]
        lines += ["| key | | default |", "|---|---|---|"]
        for key in section.keys:
            kinds = key.kind.replace("|", "\\|")
            lines.append(f"| `{key.name}` | {key.text.replace('|', chr(92) + '|')}<br>*{kinds}* | `{key.default}` |")
        lines.append("")
    return "\n".join(lines)


# Man pages


def roff(text: str) -> str:
    """Return the text with the characters escaped that troff would interpret."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.M)


def page(name: str, about: str) -> Iterator[str]:
    """Yield the head of a man page."""
    title, section = name.rsplit(".", 1)
    yield f'.TH "{title.upper()}" "{section}" "" "displbe {displbe.__version__}" ""'
    yield from (".SH NAME", f"{roff(title)} \\- {roff(about)}")


def options(of: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the options of a parser, without its commands."""
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        names = ", ".join(f"\\fB{roff(option)}\\fR" for option in action.option_strings)
        value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
        value = f"\\fI{roff(str(value))}\\fR" if action.nargs != 0 else ""
        text = (action.help or "") % {"default": action.default, "prog": of.prog}
        yield from (".TP", " ".join(part for part in (names, value) if part), roff(text or "."))


def program(name: str, about: str, parser: argparse.ArgumentParser, module: ModuleType, more: list[str]) -> str:
    """Return the man page of a program."""
    lines = [
        *page(name, about),
        ".SH SYNOPSIS",
        ".nf",
        roff(parser.format_usage().removeprefix("usage: ").strip()),
        ".fi",
    ]
    lines += [".SH DESCRIPTION", roff(ABOUT if name == "displbe.8" else str(parser.description))]
    lines += [".SH OPTIONS", *options(parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            lines.append(".SH COMMANDS")
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for command, sub in action.choices.items():
                lines += [f".SS {roff(command)}", roff(helps.get(command) or ""), *options(sub)]
    codes = re.search(r"Exit codes: (.*?)\n(?:\n|$)", f"{module.__doc__}\n", re.S)
    if codes is not None:
        lines += [".SH EXIT STATUS", roff(" ".join(codes[1].split()))]
    lines += [*more, ".SH SEE ALSO", ", ".join(f"\\fB{roff(other)}\\fR" for other in SEE_ALSO[name])]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Return the man page displbe.toml(5)."""
    lines = [
        *page("displbe.toml.5", "configuration of displbe"),
        ".SH SYNOPSIS",
        roff(startup.CONFIG),
        ".SH DESCRIPTION",
    ]
    lines.append(
        roff(
            "The configuration is a file in TOML. A key may be left out; then its default applies. An unknown key or a wrong value is an"
            f" error. displbe --config {startup.CONFIG} --check reports the errors of the file."
        )
    )
    lines += [".PP", roff(reloading())]
    for section in settings():
        lines.append(f".SH {roff(f'[{section.name}]' if section.name else 'TOP')}")
        if section.name and section.text:
            lines.append(roff(section.text))
        for key in section.keys:
            lines += [
                ".TP",
                f"\\fB{roff(key.name)}\\fR = {roff(key.kind)} (default: {roff(key.default)})",
                roff(key.text),
            ]
    others = ", ".join(f"\\fB{roff(other)}\\fR" for other in SEE_ALSO["displbe.toml.5"])
    return "\n".join([*lines, ".SH SEE ALSO", others]) + "\n"


def man_pages() -> dict[str, str]:
    """Return each man page by its name."""
    files = [".SH FILES", ".TP", f"\\fI{roff(startup.CONFIG)}\\fR", "the configuration"]
    signals = [
        ".SH SIGNALS",
        roff(
            "SIGTERM and SIGINT end displbe. It closes the devices of all guests, and leaves the screens as on-exit in [drm] says."
        ),
        ".PP",
        roff(reloading()),
    ]
    made = {
        "displbe.8": program(
            "displbe.8", "backend of Xen's paravirtual displays", startup.parser(), startup, files + signals
        ),
        "displbe.toml.5": settings_page(),
    }
    if find_spec("displbe.ctl") is not None:
        ctl = importlib.import_module("displbe.ctl.main")
        made["displbectl.1"] = program("displbectl.1", "query and control the running displbe", ctl.parser(), ctl, [])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("configuration")
    commands.add_parser("man").add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "configuration":
        print(configuration(), end="")
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, text in man_pages().items():
        (arguments.folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()

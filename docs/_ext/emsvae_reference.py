"""Sphinx extension: pages of every command and every setting, written from the dataclasses that are the command line.

Nothing is kept by hand: a field, its default, its choices and its sentence of help are read where `emsvae COMMAND --help` reads them.
"""

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from emspatialvae import config
from emspatialvae.cli.main import COMMANDS

POSITIONAL = get_args(Positional[int])[1]
"""What tyro marks a positional argument with."""
SETTINGS = ("InputConfig", "PrepareConfig", "ModelConfig", "TrainConfig")


class Setting(NamedTuple):
    """One row: how it is typed, what it takes, what it is without, what it does, and which dataclass holds it."""

    name: str
    flags: tuple[str, ...]
    takes: str
    default: str
    said: str
    owner: str


def command_class(command: str) -> type:
    """The dataclass of a command: the one that its module parses."""
    if command == "simulate":
        return config.SimulateConfig
    module = import_module(f"emspatialvae.cli.{command.replace('-', '_')}")
    return next(
        value
        for name, value in vars(module).items()
        if name.endswith("Command") and value.__module__ == module.__name__
    )


def sentences(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
    found = {}
    for field, below in itertools.pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def settings(cls: type) -> Iterator[Setting]:
    """Every setting of a dataclass and of those inside it, in the order in which help shows them."""
    said, hints = sentences(cls), get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        kind, marks = _taken_apart(hints[field.name])
        if dataclasses.is_dataclass(kind):
            yield from settings(kind)  # pyright: ignore[reportArgumentType]
            continue
        named = next((mark for mark in marks if hasattr(mark, "aliases")), None)
        word = (getattr(named, "name", None) or field.name).replace("_", "-")
        if POSITIONAL in marks:
            flags = (getattr(named, "metavar", None) or field.name.upper(),)
        else:
            flags = (f"--{word}", *(getattr(named, "aliases", None) or ()))
        if kind is bool:
            flags = (flags[0], f"--no-{word}")
        if field.name not in said:
            raise ValueError(f"{cls.__name__}.{field.name} has no sentence of help")
        yield Setting(field.name, flags, _takes(kind), _default(field), said[field.name], cls.__name__)


def _taken_apart(hint: Any) -> tuple[Any, list[Any]]:
    marks: list[Any] = []
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        marks += more
    return hint, marks


def _takes(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return " \\| ".join(f"`{choice}`" for choice in get_args(kind))
    if origin in (Union, types.UnionType):
        return " \\| ".join(_takes(part) for part in get_args(kind) if part is not type(None))
    if origin is tuple:
        return f"{_takes(get_args(kind)[0])}, any number"
    return {bool: "switch", int: "whole number", float: "number", Path: "path", str: "text"}[kind]


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None or field.default == ():
        return ""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return f"`{field.default:.6g}`" if isinstance(field.default, float) else f"`{field.default}`"


def _cell(text: str) -> str:
    """A sentence of help as a cell of a Markdown table, where a double hyphen must not become a dash."""
    text = re.sub(r"(?<![`\w-])(--[a-z][\w-]*)", r"`\1`", text)
    parts = text.split("`")
    for at in range(0, len(parts), 2):  # outside code
        parts[at] = re.sub(r"([|<>*_\[\]])", r"\\\1", parts[at])
    return "`".join(part.replace("|", "\\|") if at % 2 else part for at, part in enumerate(parts))


def table(rows: list[Setting]) -> list[str]:
    """Settings as a table."""
    lines = ["| option | takes | default | what it does |", "|---|---|---|---|"]
    for row in rows:
        flags = ", ".join(f"`{flag}`" for flag in row.flags)
        lines.append(f"| {flags} | {row.takes} | {row.default} | {_cell(row.said)} |")
    return [*lines, ""]


def commands_page() -> str:
    """Every command with its own options."""
    lines = [
        "# Every command",
        "",
        "This page is written from the program when the site is built. `emsvae COMMAND --help` says the same. What the commands do with a run "
        "stands in [What to do with a run](../commands.md).",
        "",
    ]
    for command in COMMANDS:
        cls = command_class(command)
        own = [row for row in settings(cls) if row.owner not in SETTINGS or command != "train"]
        lines += [f"## emsvae {command}", "", *_paragraphs(cls), *table(own)]
        if command == "train":
            lines += ["and all [settings of a training](settings.md).", ""]
    return "\n".join(lines)


def _paragraphs(cls: type) -> list[str]:
    text = inspect.cleandoc(cls.__doc__ or "")
    return [line for part in text.split("\n\n") for line in (_cell(" ".join(part.split())), "")]


def settings_page() -> str:
    """Every setting of a training."""
    lines = [
        "# Every setting of a training",
        "",
        "This page is written from `emspatialvae/config.py` when the site is built. A setting has one name everywhere: as an option of "
        "`emsvae train`, as a key of `config.json` in the run folder (hyphens become underscores), and as an argument of `ev.train`. "
        "Lengths whose name ends in `-a` are in angstrom.",
        "",
    ]
    for name in SETTINGS:
        cls = getattr(config, name)
        lines += [f"## {name.removesuffix('Config')}", "", *_paragraphs(cls), *table(list(settings(cls)))]
    own = [row for row in settings(config.RunConfig) if row.owner == "RunConfig"]
    lines += ["## Results", "", *table(own), "## Presets", ""]
    for name, parts in config.PRESETS.items():
        set_by = ", ".join(f"`{key}={value}`" for part in parts.values() for key, value in part.items())
        lines += [f"`--preset {name}` sets {set_by}.", ""]
    return "\n".join(lines)


def write(folder: Path) -> None:
    """Write the pages, where they have changed."""
    folder.mkdir(exist_ok=True)
    for name, text in {"commands.md": commands_page(), "settings.md": settings_page()}.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    write(Path(app.srcdir) / "reference")
    return {"parallel_read_safe": True}

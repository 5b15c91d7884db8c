"""A training as its form sees it: the settings with their help, what was typed made a configuration, how far a job has come.

The settings are those of `emspatialvae.config`, so that a new one there is a new field here. No Qt.
"""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from emspatialvae.config import InputConfig, ModelConfig, PrepareConfig, RunConfig, TrainConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.jobs import background as jobs

PARTS: dict[str, type] = {"input": InputConfig, "prepare": PrepareConfig, "model": ModelConfig, "train": TrainConfig}
AUTOMATIC = "automatic"
"""Stands where a setting is decided by the program."""
NOTHING = "none"
"""Typed where a setting may be switched off."""
RATE_OVER = 5
"""Epochs that the speed is measured over."""
TAIL_BYTES = 8192

_UNITS = {"A": "\N{ANGSTROM SIGN}", "px": "px", "rad": "rad", "sd": "s.d.", "minutes": "min"}
_SPELLED = {"ctf": "CTF", "kl": "KL", "z": "z"}


@dataclass(frozen=True)
class Setting:
    """A field of the configuration."""

    part: str
    """The part of `RunConfig` that it belongs to; empty for its own fields."""
    name: str
    kind: Literal["yes-no", "choice", "whole", "number", "path", "text"]
    choices: tuple[str, ...]
    """Of kind choice."""
    may_be_none: bool
    help: str
    flag: str
    """On the command line, with its dashes."""

    @property
    def key(self) -> str:
        """Name and part in one."""
        return f"{self.part}.{self.name}"

    @property
    def label(self) -> str:
        """What stands beside the field: ``particle_diameter_A`` is particle diameter (Angstrom sign)."""
        words = self.name.split("_")
        unit = _UNITS.get(words[-1]) if len(words) > 1 else None
        name = " ".join(_SPELLED.get(word, word) for word in (words[:-1] if unit else words))
        return f"{name} ({unit})" if unit else name

    @property
    def tip(self) -> str:
        """The help, in lines, and the flag that does the same."""
        return "\n".join([*textwrap.wrap(self.help.replace("`", ""), 76), "", f"command line: {self.flag}"])

    def of(self, config: RunConfig) -> Any:
        """Its value in a configuration."""
        return getattr(getattr(config, self.part) if self.part else config, self.name)

    def shown(self, config: RunConfig) -> str:
        """Its value in a configuration, as a form shows it."""
        value = self.of(config)
        if value is None:
            return AUTOMATIC
        return f"{value:g}" if self.kind == "number" else str(value)

    def parse(self, text: str) -> Any:
        """What was typed, as a value.

        Raises
        ------
        EmsvaeError
            It is not one.
        """
        if self.kind == "choice":
            return text
        if self.may_be_none and text == NOTHING:
            return None
        if self.kind == "text":
            return text
        if self.kind == "path":
            return Path(text).expanduser()
        try:
            return int(text) if self.kind == "whole" else float(text)
        except ValueError:
            wanted = "a whole number" if self.kind == "whole" else "a number"
            raise EmsvaeError(f"{self.label} is {text!r}; expected {wanted}") from None


@cache
def settings() -> dict[str, Setting]:
    """Every setting but the particle file, by its key, in the order of the configuration."""
    found = [Setting(part, *rest) for part, owner in PARTS.items() for rest in _fields(owner)]
    found += [Setting("", *rest) for rest in _fields(RunConfig)]
    return {setting.key: setting for setting in found}


def config_of(particles: Path, base: RunConfig, typed: Mapping[str, str | bool]) -> RunConfig:
    """The configuration ``base`` with what was typed, by keys of `settings`; an empty text leaves the value of ``base``.

    Raises
    ------
    EmsvaeError
        A value is none.
    """
    changed: dict[str, dict[str, Any]] = {part: {} for part in (*PARTS, "")}
    changed["input"]["particles"] = particles
    for key, value in typed.items():
        setting = settings()[key]
        if isinstance(value, bool):
            changed[setting.part][setting.name] = value
        elif value.strip():
            changed[setting.part][setting.name] = setting.parse(value.strip())
    parts = {part: replace(getattr(base, part), **changed[part]) for part in PARTS}
    return replace(base, **parts, **changed[""])


def _fields(owner: type) -> list[tuple[Any, ...]]:
    """The fields of a dataclass of settings as arguments of `Setting` after the first."""
    hints, documents = get_type_hints(owner, include_extras=True), _docstrings(owner)
    made = []
    for field in fields(owner):
        hint = hints[field.name]
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        if field.name == "particles" or hint in PARTS.values():
            continue
        kind, choices, may_be_none = _kind(hint)
        made.append(
            (field.name, kind, choices, may_be_none, documents[field.name], f"--{jobs.flag_of(owner, field.name)}")
        )
    return made


def _kind(hint: Any) -> tuple[str, tuple[str, ...], bool]:
    if get_origin(hint) is Literal:
        return "choice", get_args(hint), False
    choices = get_args(hint)
    plain = next((choice for choice in choices if choice is not type(None)), hint)
    return {bool: "yes-no", int: "whole", float: "number", Path: "path", str: "text"}[plain], (), bool(choices)


def _docstrings(owner: type) -> dict[str, str]:
    """The sentence below each field of a dataclass; Python itself forgets them."""
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


# ------------------------------------------------------------------------------------------------ how far it has come


class Pace:
    """How fast epochs go by, from looks at their number now and then."""

    def __init__(self) -> None:
        self._seen: int | None = None
        self._ends: list[tuple[int, float]] = []

    def look(self, epochs: int, now_s: float) -> None:
        """``epochs`` are done at the time ``now_s``."""
        if self._seen is not None and epochs > self._seen:
            self._ends = [*self._ends, (epochs, now_s)][-RATE_OVER - 1 :]
        self._seen = epochs

    @property
    def epoch_s(self) -> float | None:
        """Seconds per epoch; None until two of them have ended before our eyes."""
        if len(self._ends) < 2:
            return None
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        return (ended - began) / (last - first)


def progress_text(done: int, train: TrainConfig, particles: int, pace: Pace) -> str:
    """Epoch, speed and time left of a training of ``particles`` particles that has ``done`` some epochs."""
    wanted = train.epochs
    if wanted is not None and done >= wanted:
        return f"{done} epochs done; inferring every particle, drawing the figures"
    until = f" of {wanted:,}" if wanted is not None else f", until it has settled (at most {train.max_epochs:,})"
    said = [f"epoch {done + 1:,}{until}"]
    if pace.epoch_s:
        said.append(f"{particles * (1 - train.holdout) / pace.epoch_s:,.0f} particles/s")
        if wanted is not None:
            said.append(f"{duration(pace.epoch_s * (wanted - done))} left")
    return ", ".join(said)


def duration(seconds: float) -> str:
    """A time span in words."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {max(1, round(seconds))} s"


def tail(log: Path, lines: int) -> str:
    """The last lines of a file; nothing where there is none yet."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])

"""Which particles a run is about: their names in their order, and marks of the stacks that their images lie in.

RELION sorts rows, users edit tables and extract stacks anew. A row that has moved is followed by its image name; particles that are
gone or new, and stacks that are not what they were, are refused with what has changed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import RunFolderError
from emspatialvae.io.fingerprint import Fingerprint
from emspatialvae.io.image_names import plain_image_name
from emspatialvae.io.json_dataclass import is_list
from emspatialvae.particles.stack import ParticleStack


@dataclass(frozen=True)
class Stack:
    """A stack as it was when the run began."""

    name: str
    """As the metadata spell it."""
    images: int
    box: int
    mark: Fingerprint


@dataclass(frozen=True)
class Identity:
    """What a run remembers of its input."""

    names: list[str]
    """Of the particles, in the order of the run's rows."""
    stacks: list[Stack]

    @classmethod
    def of(cls, stack: ParticleStack) -> "Identity":
        """Look at particles whose stacks are open."""
        found = [
            Stack(_stack_name(stack, number), file.n_images, file.width, Fingerprint.of(file.path))
            for number, file in enumerate(stack.files)
        ]
        return cls([str(name) for name in stack.names], found)

    @classmethod
    def from_json(cls, content: Any) -> "Identity":
        """What ``dataclasses.asdict`` made of one; TypeError, KeyError or ValueError where it is damaged."""
        names = content["names"]
        if not (is_list(names) and all(isinstance(name, str) for name in names)):
            raise ValueError("names is not a list of texts")
        stacks = [
            Stack(found["name"], found["images"], found["box"], Fingerprint(**found["mark"]))
            for found in content["stacks"]
        ]
        return cls(names, stacks)


def check_stacks(known: Identity, stack: ParticleStack) -> None:
    """Refuse stacks that are not those of the run any more.

    Raises
    ------
    RunFolderError
        Says which, and what about it has changed.
    """
    before = {found.name: found for found in known.stacks}
    for number, file in enumerate(stack.files):
        was = before.get(_stack_name(stack, number))
        changed = None
        if was is None:
            changed = "is none of the stacks of the run"
        elif was.box != file.width:
            changed = f"now has images of {file.width} px, the run was trained on {was.box} px"
        elif was.images != file.n_images:
            changed = f"now holds {file.n_images:,} images, the run was trained on a stack of {was.images:,}"
        elif was.mark != Fingerprint.of(file.path):
            changed = "is not the file that the run was trained on (as long or not, its header or its pixels differ)"
        if changed is not None:
            raise RunFolderError(
                f"{file.path} {changed}; give the old one back (--project-dir says where), or train anew with --force"
            )


def rows_of(known: Sequence[str], now: Sequence[str], source: Path) -> NDArray[np.int64] | None:
    """Where the particles of a run, in its order, stand in its file now; None where all stand where they stood.

    Raises
    ------
    RunFolderError
        Some are gone, or others are there; or rows have moved and several have one name, so that they cannot be told apart.
    """
    if len(known) == len(now) and all(a == b for a, b in zip(known, now, strict=True)):
        return None
    keys, keys_now = list(map(plain_image_name, known)), list(map(plain_image_name, now))
    if keys == keys_now:
        return None
    gone, new = Counter(keys) - Counter(keys_now), Counter(keys_now) - Counter(keys)
    if gone or new:
        changes = [
            f"{sum(some.values()):,} {what} (the first is {next(iter(some))})"
            for some, what in ((gone, "are gone"), (new, "are new"))
            if some
        ]
        raise RunFolderError(
            f"{source} now has {len(now):,} particles, the run has {len(known):,}: {' and '.join(changes)}; give back the file that the "
            "run was trained on, or train anew with --force"
        )
    row_of = {key: row for row, key in enumerate(keys_now)}
    if len(row_of) < len(keys_now):
        twice = next(key for key, count in Counter(keys_now).items() if count > 1)
        raise RunFolderError(
            f"{source}: rows have moved since the run was trained, and {twice} is listed more than once, so that they cannot be told "
            "apart; put the rows back into their order, or train anew with --force"
        )
    return np.array([row_of[key] for key in keys], dtype=np.int64)


def _stack_name(stack: ParticleStack, number: int) -> str:
    """What a stack is called in the metadata; where there are none, its path depends on where the command was called."""
    path = stack.paths[number]
    return path if stack.kind in ("star", "cs") else Path(path).name


def keys_of(names: Iterable[Any]) -> list[tuple[str, int]]:
    """What each of some rows is known by: its image, and how many rows before it have the same."""
    seen: Counter[str] = Counter()
    keys: list[tuple[str, int]] = []
    for name in map(plain_image_name, map(str, names)):
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys

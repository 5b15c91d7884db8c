"""Which images of two particle files are the same: by the file that a name leads to, not by how it is spelled.

One stack has many spellings (``./s.mrcs``, an absolute path, a link), and one spelling means other stacks in other folders.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.config import InputConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.imaging.arrays import Mask
from emspatialvae.io.fingerprint import Fingerprint
from emspatialvae.io.image_names import parse_image_name
from emspatialvae.particles.load import find_stack

Key = tuple[int, str]
"""The image's place in the stack, and what the stack is known by."""


@dataclass(frozen=True)
class ImageKeys:
    """The images of two particle files under keys that are equal for the same image.

    Attributes
    ----------
    mine, theirs
        A key per row of each file.
    is_found
        Of my rows: whether the stack was found, so that the key stands for a file rather than for a spelling; [n].
    namesakes
        Of my rows: whether the other file has the same name for an image of another file; [n].
    """

    mine: list[Key]
    theirs: list[Key]
    is_found: Mask
    namesakes: Mask


def image_keys(mine: NDArray[Any], my_input: InputConfig, theirs: NDArray[Any], their_input: InputConfig) -> ImageKeys:
    """Keys of image names [n] and [m] (``N@path``); ``..._input`` say where the stacks of each are looked for.

    Copies of one file count as it. A stack that is not here on one of the sides is known by its spelling on both.
    """
    my_parts, their_parts = list(map(_parts, mine)), list(map(_parts, theirs))
    my_files, their_files = _located(my_parts, my_input), _located(their_parts, their_input)
    same = _same_files([*my_files.values(), *their_files.values()])
    gone = {path for files in (my_files, their_files) for path, file in files.items() if file is None}

    def key(part: Key, files: Mapping[str, Path | None]) -> Key:
        number, path = part
        file = None if path in gone else files[path]
        return number, path if file is None else f"file {same[file]}"

    my_keys, their_keys = [key(part, my_files) for part in my_parts], [key(part, their_files) for part in their_parts]
    spelled, known = set(their_parts), set(their_keys)
    return ImageKeys(
        my_keys,
        their_keys,
        np.array([path not in gone for _, path in my_parts], bool),
        np.array([part in spelled and key not in known for part, key in zip(my_parts, my_keys, strict=True)], bool),
    )


def _parts(name: str) -> Key:
    image = parse_image_name(name)
    return image.place, normpath(image.path)


def _located(parts: list[Key], source: InputConfig) -> dict[str, Path | None]:
    """Spelled path -> the file behind all links; None where it is not there."""
    found: dict[str, Path | None] = {}
    for _, path in parts:
        if path not in found:
            try:
                found[path] = find_stack(path, source).resolve()
            except ParticleFileError:
                found[path] = None
    return found


def _same_files(files: list[Path | None]) -> dict[Path, int]:
    """A number per file, the same for copies: files of one name and size are compared by their fingerprints."""
    alike: dict[tuple[str, int], list[Path]] = {}
    for file in dict.fromkeys(file for file in files if file is not None):
        alike.setdefault((file.name, file.stat().st_size), []).append(file)
    numbers: dict[Path, int] = {}
    for group in alike.values():
        first: dict[Fingerprint | Path, int] = {}
        for file in group:
            mark = Fingerprint.of(file) if len(group) > 1 else file
            numbers[file] = first.setdefault(mark, len(numbers))
    return numbers

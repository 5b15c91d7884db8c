"""cryoSPARC's ``.csg`` files: a page of text that says which ``.cs`` files hold a group of results; the particles are in these."""

import re
from dataclasses import dataclass
from pathlib import Path

from emspatialvae.errors import ParticleFileError

_KEY = re.compile(r"^\s*([\w.-]+):\s*$")
_METAFILE = re.compile(r"^\s*metafile:\s*(?P<quote>['\"]?)>?(?P<path>.+?)(?P=quote)\s*$")
_LARGEST_BYTES = 1 << 22


@dataclass(frozen=True)
class CsGroup:
    """Where the fields of a group of particles are."""

    particles: Path
    passthrough: Path | None


def read_csg(path: Path) -> CsGroup:
    """Which ``.cs`` files a ``.csg`` file points to; their names are relative to its folder.

    The passthrough file is told by its name, as cryoSPARC writes it; without such a name the images' file (``blob``) is the first.

    Raises
    ------
    ParticleFileError
        Unreadable, no group of results, more files than one and a passthrough, or files that are not there.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES)
    except OSError as error:
        raise ParticleFileError(f"{path} cannot be read: {error.strerror or error}") from error
    result, files = "", {}
    for line in content.decode("utf-8", "surrogateescape").splitlines():
        if (key := _KEY.match(line)) is not None:
            result = key[1]
        elif (found := _METAFILE.match(line)) is not None:
            files.setdefault(found["path"], []).append(result)
    if not files:
        raise ParticleFileError(f"{path} names no .cs file (a line with metafile:); give the .cs file of the particles")
    ordered = sorted(files, key=lambda name: ("passthrough" in Path(name).name, "blob" not in files[name]))
    if len(ordered) > 2:
        raise ParticleFileError(
            f"{path} names {len(ordered)} .cs files ({', '.join(ordered)}); two can be joined: give the one with blob/path, and another with "
            "--passthrough"
        )
    places = [path.parent / name for name in ordered]
    for place in places:
        if not _is_file(place):
            raise ParticleFileError(
                f"{path} names {place.name!r}, which is not at {place}; copy it there, or give the .cs file itself"
            )
    return CsGroup(places[0], places[1] if len(places) > 1 else None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def particle_file(path: Path) -> Path:
    """The ``.cs`` file of the particles where the path is that of a ``.csg`` file; any other path as it is."""
    return read_csg(path).particles if path.suffix.lower() == ".csg" and path.is_file() else path

"""Which row of a stack a user means: image names as people type them."""

from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError
from emspatialvae.io.image_names import ImageName, parse_image_name


def find_particle(names: NDArray[Any], wanted: str) -> int:
    """Row of the particle that ``wanted`` names among image names [n], ``N@path`` as a metadata file spells them.

    Zeros before N do not matter, and of the path its end will do where it fits one stack only: ``123@stack.mrcs`` finds
    ``000123@Extract/job007/stack.mrcs``. Of rows that name the same image the first is meant.

    Raises
    ------
    EmsvaeError
        There is none, or there are several different ones.
    """
    number, path = parse_image_name(wanted.strip())
    if not path:
        raise EmsvaeError(f"{wanted!r} names no particle; expected N@stack as in {names[0]}")
    images = [parse_image_name(name.strip()) for name in names.tolist()]
    paths = {p for _, p in images}
    fitting = {path} if path in paths else {p for p in paths if _ends_with(p, path)}
    stack = [(n, row) for row, (n, p) in enumerate(images) if p in fitting and (n is None) == (number is None)]
    rows = {images[row]: row for n, row in reversed(stack) if n == number}
    if len(rows) == 1:
        return next(iter(rows.values()))
    if rows:
        first, second = sorted(rows.values())[:2]
        others = " or others" if len(rows) > 2 else ""
        raise EmsvaeError(f"{wanted!r} may be {names[first]} or {names[second]}{others}; give more of the path")
    if number is not None and stack:
        nearest = min(stack, key=lambda found: abs((found[0] or 0) - number))[1]
        numbers = [n or 0 for n, _ in stack]
        raise EmsvaeError(
            f"no particle {wanted!r}: the run has {len(stack):,} of that stack, {min(numbers)} to {max(numbers)}; the nearest is "
            f"{names[nearest]}"
        )
    raise EmsvaeError(f"no particle {wanted!r} in the run; {_alike(names, images, path)}")


def _ends_with(path: str, end: str) -> bool:
    """Whether a path ends with these of its parts, whole ones."""
    parts = PurePosixPath(end).parts
    return bool(parts) and PurePosixPath(path).parts[-len(parts) :] == parts


def _alike(names: NDArray[Any], images: list[ImageName], path: str) -> str:
    """The first particle of the stack whose name looks most like a path's, or of any."""
    row_of = {PurePosixPath(p).name: row for row, (_, p) in reversed([*enumerate(images)])}
    near = get_close_matches(PurePosixPath(path).name, row_of, n=1, cutoff=0.5)
    return f"did you mean {names[row_of[near[0]]]}?" if near else f"names look like {names[0]}"

"""Links that end in .mrcs to stacks that do not: RELION reads several images from no other file."""

import os
from collections.abc import Mapping
from pathlib import Path

from emspatialvae.errors import EmsvaeError, OutputExistsError
from emspatialvae.particles.stack import ParticleStack

LINKED = (".mrc", ".map", ".st", ".stk")
"""MRC stacks under other names."""


def unread_by_relion(stack: ParticleStack) -> list[str]:
    """Stacks, as the metadata spell them, that RELION does not take for such."""
    return [path for path in stack.paths if Path(path).suffix in LINKED]


def planned_links(stack: ParticleStack, folder: Path, *, force: bool) -> dict[str, Path]:
    """Spelled path -> the link that is to be made for it; paths that end in .mrcs need none.

    Raises
    ------
    EmsvaeError
        Another file stands where a link should go.
    """
    links: dict[str, Path] = {}
    taken: set[Path] = set()
    for path in unread_by_relion(stack):
        stem = Path(path).stem
        link = folder / f"{stem}.mrcs"
        number = 2
        while link in taken:  # stacks of one name in several folders
            link, number = folder / f"{stem}_{number}.mrcs", number + 1
        taken.add(link)
        links[path] = link
    for path, target in _targets(stack, links).items():
        link = links[path]
        if not os.path.lexists(link) or (link.is_symlink() and link.resolve() == target):
            continue
        if not link.is_symlink():
            raise EmsvaeError(f"{link} is a file of its own, no link; choose another --link-stacks")
        if not force:
            raise OutputExistsError(link)
    return links


def make_links(stack: ParticleStack, links: Mapping[str, Path]) -> list[str]:
    """Make them, and name every particle's image by them, ``N@link``; [n]."""
    for path, target in _targets(stack, links).items():
        link = links[path]
        if link.is_symlink() and link.resolve() == target:
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return stack.image_names([str(links.get(path, path)) for path in stack.paths])


def _targets(stack: ParticleStack, links: Mapping[str, Path]) -> dict[str, Path]:
    """Spelled path -> the file itself, where it gets a link."""
    return {path: file.path.resolve() for path, file in zip(stack.paths, stack.files, strict=True) if path in links}

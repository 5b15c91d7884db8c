"""Films along a path through latent space: what the model draws, and beside it the rolling average of real particles."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats, Rows
from napari_emsvae.explorer.pictures.upright import upright
from napari_emsvae.explorer.run_data import RunData

if TYPE_CHECKING:
    from emspatialvae.analysis.figures.film import Film

STEP = 256
"""Images that are aligned at a time."""
SUFFIXES = (".mrcs", ".gif", ".png")


def film_along(data: RunData, points: Floats, ends: tuple[str, str]) -> "Film":
    """The film along latents ``points`` [k, d], k >= 2.

    The averages are of the 100 particles nearest to each step, aligned by their poses, from the prepared images. They are the honest
    half: the model draws something everywhere, also where there is no particle.
    """
    from emspatialvae.analysis.figures.film import Film
    from emspatialvae.analysis.latent_space import paths
    from emspatialvae.model.render import canonical

    latents, used = data.latents, data.used
    path = paths.walk(points, latents.z[used], paths.typical_sd(latents.z_sd[used]))
    return Film(
        drawn=canonical(data.model, points),
        averages=rolling_averages(data, used[path.members]),
        averaged=path.members.shape[1],
        z=points,
        travelled=path.travelled,
        near=path.near,
        ends=ends,
        pixel_size_A=data.pixel_size_A,
    )


def rolling_averages(data: RunData, members: Rows) -> NDArray[np.float32]:
    """Averages of aligned particles ``members`` [k, m], each particle read once; [k, box, box]."""
    from emspatialvae.model.render import restored

    rows, place = np.unique(members, return_inverse=True)
    belongs = np.zeros((len(members), len(rows)), dtype=np.float32)
    np.put_along_axis(belongs, place.reshape(members.shape), 1, axis=1)
    images, box = data.images, data.images.box
    total = np.zeros((len(members), box, box))
    power = np.zeros((len(members), box // 2 + 1)) if images.has_ctf_power else None
    for start in range(0, len(rows), STEP):
        part = slice(start, start + STEP)
        aligned, portion = upright(data, rows[part])
        total += np.tensordot(belongs[:, part], aligned, 1)
        if power is not None and portion.ctf_power is not None:
            power += belongs[:, part] @ portion.ctf_power
    if power is not None:
        return restored(total, power)
    return (total / members.shape[1]).astype(np.float32)


def along_line(line: Floats, steps: int) -> Floats:
    """Points at equal steps along a drawn line [k, 2]; [steps, 2]."""
    travelled = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    kept = np.concatenate([[True], np.diff(travelled) > 0])
    at = np.linspace(0, travelled[-1], steps)
    return np.stack([np.interp(at, travelled[kept], line[kept, k]) for k in (0, 1)], 1)


def averages_beside(destination: Path) -> Path:
    """Where the averages of real particles go when the film is a stack: film.mrcs has film_particles.mrcs beside it."""
    return destination.with_stem(f"{destination.stem}_particles")


def save_film(film: "Film", destination: Path, *, force: bool = False) -> None:
    """Write a film as a stack of what the model draws (.mrcs; the averages beside it), as .gif, or as a strip of pictures (.png).

    Raises
    ------
    EmsvaeError
        Another ending, or the file exists.
    """
    from emspatialvae.analysis.figures import run as figures
    from emspatialvae.analysis.figures.film import strip, write_gif
    from emspatialvae.io.mrc import StackWriter

    if destination.suffix not in SUFFIXES:
        raise EmsvaeError(f"{destination}: cannot tell the format; expected a name ending in {', '.join(SUFFIXES)}")
    if destination.suffix == ".gif":
        write_gif(film, destination, force=force)
    elif destination.suffix == ".png":
        if destination.exists() and not force:
            raise EmsvaeError(f"{destination} exists already; choose another name")
        figures.save(strip(film), destination, dpi=130)
    else:
        beside = averages_beside(destination)
        stacks = {destination: film.drawn} | ({} if film.averages is None else {beside: film.averages})
        for file in stacks:
            if file.exists() and not force:
                raise EmsvaeError(f"{file} exists already; choose another name")
        for file, images in stacks.items():
            with StackWriter(file, len(images), images.shape[-1], film.pixel_size_A, overwrite=force) as writer:
                writer.append(images)

"""``emsvae manifold``: a map of what the model draws, and of what lies where."""

from pathlib import Path

from emspatialvae.analysis.figures import latent_map
from emspatialvae.analysis.figures import run as figures
from emspatialvae.analysis.latent_space import manifold
from emspatialvae.errors import EmsvaeError
from emspatialvae.inference.infer import load_model
from emspatialvae.io.atomic import check_outputs, check_writable
from emspatialvae.io.mrc import StackWriter
from emspatialvae.model.render import canonical
from emspatialvae.results.own_files import check_not_own
from emspatialvae.results.read_run import input_paths, results_of
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.progress import Say

MAP_SUFFIXES = (".png", ".mrcs")


def write_manifold(
    run: RunDir,
    out: Path,
    *,
    tiles: int,
    components: tuple[int, ...] | None = None,
    force: bool = False,
    say: Say = print,
) -> None:
    """Decode a grid over latent space: a picture (.png) or a stack of its tiles (.mrcs), row by row from the top.

    Parameters
    ----------
    tiles
        Along an axis.
    components
        One or two principal components of z, from 1, that the axes follow [default: z itself for one or two dimensions, else 1, 2].

    Raises
    ------
    EmsvaeError
        A component that z does not have, fewer than 2 tiles, another ending, or no particle that could be used.
    """
    if out.suffix not in MAP_SUFFIXES:
        raise EmsvaeError(f"{out}: cannot tell the format; expected a name ending in {' or '.join(MAP_SUFFIXES)}")
    if tiles < 2:
        raise EmsvaeError(f"--tiles is {tiles}; a map has at least 2 along an axis")
    check_writable(out, force)
    check_not_own([out])
    check_outputs([out], input_paths(run))
    latents = results_of(run)
    _check_components(components, latents.z.shape[1])
    shown = manifold.zmap(latents.z[latents.used], tiles, components)
    images = canonical(load_model(run), shown.z)
    if out.suffix == ".png":
        figures.save(latent_map.draw(images, shown, latents.pixel_size_A), out, dpi=160)
    else:
        with StackWriter(out, len(images), images.shape[-1], latents.pixel_size_A, overwrite=force) as writer:
            writer.append(images)
    rows, columns = shown.shape
    empty = int((shown.count == 0).sum())
    say(f"{rows} x {columns} tiles, {empty} of them without a particle: {out}")


def _check_components(components: tuple[int, ...] | None, d: int) -> None:
    if components is None:
        return
    said = f"--components {' '.join(map(str, components))}"
    if not 1 <= len(components) <= 2 or len(set(components)) < len(components):
        raise EmsvaeError(f"{said}: expected one component or two different ones")
    if not all(1 <= component <= d for component in components):
        raise EmsvaeError(f"{said}: z of this run has {d} of them; choose from 1 to {d}")

"""From a particle file or a run folder to napari's layer tuples.

Every layer has the axes (particle, y, x) and shares the particle slider. y and x are in angstrom with the particle's centre at 0, so
that images of any box and pixel size lie on each other.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from emspatialvae.config import InputConfig
from emspatialvae.errors import ParticleFileError, RunFolderError
from emspatialvae.imaging.contrast import contrast_limits
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.stack import ParticleStack
from napari_emsvae.layers.images import Grid, aligned_images, is_mixed, raw_images, reconstructions
from napari_emsvae.layers.layer_data import LayerData
from napari_emsvae.layers.lazy_images import LazyImages

if TYPE_CHECKING:
    from emspatialvae.results.latents import Latents
    from emspatialvae.results.run_folder import RunDir

LOOKED_AT = 8
"""Images that set the contrast."""


@dataclass(frozen=True, eq=False)
class LayerInfo:
    """What a layer shows."""

    kind: Literal["particles", "aligned", "reconstruction"]
    stack: ParticleStack
    grid: Grid
    run: Path | None = None
    """The run folder that the layer belongs to."""
    known: bool = True
    """False: the file does not say its pixel size; a pixel counts as 1."""

    def metadata(self) -> dict[str, Any]:
        """What stands in ``layer.metadata["emsvae"]``, for whoever works on the layer later.

        ``resampled`` says that the stack has images of several boxes or pixel sizes, of which those unlike the others were
        resampled to be shown; ``notes`` what was odd about the input; ``names`` are the image names in the slider's order.
        """
        return {
            "kind": self.kind,
            "source": str(self.stack.source),
            "run": None if self.run is None else str(self.run),
            "names": self.stack.names,
            "pixel_size_A": self.grid.pixel_size_A,
            "pixel_size_known": self.known,
            "resampled": self.kind != "reconstruction" and is_mixed(self.stack),
            "notes": self.stack.notes,
        }


def particle_layers(path: Path) -> list[LayerData]:
    """One layer with the images of a .star, .cs or .mrcs file, in the order of the file."""
    stack, known = _load_for_display(path)
    grid = Grid.of(stack)
    info = LayerInfo("particles", stack, grid, known=known)
    images = raw_images(stack, grid)
    return [_layer(images, info, limits_of_stack(images))]


def run_layers(path: Path) -> list[LayerData]:
    """Layers of a run, from the bottom up: raw particles, what the model draws, raw particles with the pose taken out."""
    from emspatialvae.results.read_run import read_run

    run, latents, stack = read_run(path)
    grid = Grid.of(stack)
    raw, aligned = raw_images(stack, grid), aligned_images(stack, latents, grid)
    limits = limits_of_stack(raw)
    return [
        _layer(raw, LayerInfo("particles", stack, grid, run=path), limits),
        *_reconstruction_layer(run, latents, stack),
        _layer(aligned, LayerInfo("aligned", stack, grid, run=path), limits),
    ]


def _reconstruction_layer(run: "RunDir", latents: "Latents", stack: ParticleStack) -> list[LayerData]:
    """The layer of the model's pictures; none, with a warning, when the checkpoint is gone: the images are still worth seeing."""
    from emspatialvae.inference.infer import load_model

    prepared = run.manifest.preparation
    try:
        model = load_model(run)
    except RunFolderError as error:
        warnings.warn(f"no reconstruction layer: {error}", stacklevel=2)
        return []
    grid = Grid(prepared.box, prepared.pixel_size_A)
    images = reconstructions(model, latents, grid.box)
    limits = limits_of_stack(images, np.flatnonzero(latents.used))
    return [_layer(images, LayerInfo("reconstruction", stack, grid, run=run.path), limits)]


def limits_of_stack(images: LazyImages, rows: np.ndarray | None = None) -> tuple[float, float]:
    """Contrast limits from a few images spread over the stack; NaN and infinity do not count.

    Parameters
    ----------
    rows
        Choose among these images [default: all].
    """
    rows = np.arange(len(images)) if rows is None or not len(rows) else rows
    pixels = images[rows[np.unique(np.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows))).astype(int))]]
    return contrast_limits(pixels)


def _load_for_display(path: Path) -> tuple[ParticleStack, bool]:
    """The particles, and whether their pixel size is known; without one they are still worth seeing, at 1 unit per pixel."""
    try:
        return load_particles(InputConfig(path)), True
    except ParticleFileError:
        # If it was not the pixel size that was missing, this fails with what is really wrong.
        return load_particles(InputConfig(path, pixel_size_A=1.0)), False


def _layer(images: LazyImages, info: LayerInfo, limits: tuple[float, float]) -> LayerData:
    grid, unit = info.grid, "angstrom" if info.known and not info.stack.of_pictures else "pixel"
    settings: dict[str, Any] = {
        "name": info.kind if info.known else f"{info.kind} (pixel size unknown)",
        "scale": (1, grid.pixel_size_A, grid.pixel_size_A),
        "translate": (0, grid.translate_A, grid.translate_A),
        "units": ("pixel", unit, unit),
        "axis_labels": ("particle", "y", "x"),
        "colormap": "gray",
        "contrast_limits": limits,
        "rgb": False,
        "metadata": {"emsvae": info.metadata()},
    }
    return images, settings, "image"

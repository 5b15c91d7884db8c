"""What a model knows about the images that it will see; needs no torch, for it stands in the manifest of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageSpec:
    """What the model must know about the images it will see."""

    box: int
    mask_radius_px: float
    shift_prior_px: float
    max_shift_px: float
    """Infinity for no limit."""
    channels: int = 1
    particle_radius_px: float | None = None
    """Of the circle that holds the particle; None: it may fill the box."""

"""A run's results in a few numbers."""

import numpy as np

from emspatialvae.config import ModelConfig
from emspatialvae.imaging.arrays import Floats
from emspatialvae.results.latents import Latents

ACTIVE_VARIANCE = 0.01
"""A coordinate of z is active where the variance of its posterior means exceeds this (Burda et al., arXiv 1509.00519)."""
CLEAR = 0.9
"""Pose probability above which a particle has one clear pose."""


def inferred(model: ModelConfig) -> tuple[bool, bool]:
    """Whether a model infers theta, and shifts."""
    posed = model.decoder != "vanilla" and not model.poses_fixed
    return model.rotate and posed, model.translate and posed


def shift_sd_A(latents: Latents) -> Floats:
    """S.d. of the shift along an axis (r.m.s. of the two) in angstrom; shape [n]."""
    return np.sqrt((latents.shift_sd_px**2).mean(1)) * latents.pixel_size_A


def active_units(latents: Latents) -> int:
    """How many coordinates of z say anything about the particles."""
    return int((latents.z[latents.used].var(0) > ACTIVE_VARIANCE).sum()) if latents.used.any() else 0


def sureness(latents: Latents, model: ModelConfig) -> list[str]:
    """How much is known of the particles, a line each for z, theta, shift and the pose as a whole; names padded to 12.

    What the model does not infer has none.
    """
    some = latents[latents.used]
    if not len(some):
        return []
    rotate, translate = inferred(model)
    active, z_dim = active_units(latents), some.z.shape[1]
    said = {
        "latent": f"{active} of {z_dim} coordinates of z say something (posterior means vary by more than {ACTIVE_VARIANCE:g})"
    }
    if not active:
        said["latent"] += ": no differences between particles were found beside their poses"
    if rotate:
        said["theta"] = f"known to {np.degrees(np.median(some.theta_sd_rad)):.2g} degrees (median s.d.)"
    if translate:
        sd_A = float(np.median(shift_sd_A(some)))
        said["shift"] = f"known to {sd_A:.2g} A, {sd_A / some.pixel_size_A:.2g} px (median s.d. along an axis)"
    if some.peak_weight is not None and (rotate or translate):
        share = (some.peak_weight > CLEAR).mean()
        said["pose"] = f"one clear pose for {100 * share:.0f} % of the particles (probability above {CLEAR:g})"
    return [f"{name:<12} {text}" for name, text in said.items()]

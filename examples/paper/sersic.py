"""Galaxies without a telescope: Sersic bulges and discs with spiral arms and colour, seen under an angle, at a random pose.

A picture is computed at every pixel from its formula, four samples a pixel: nothing is interpolated. Colours are in the order
red, green, blue, values between 0 and 1.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging import geometry
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D

OLD, YOUNG = np.array([1.0, 0.72, 0.45]), np.array([0.55, 0.72, 1.0])
"""Colours of old stars, in bulges, and of young ones, in arms."""


@dataclass(frozen=True)
class Galaxies:
    """n galaxies before they are posed; lengths in boxes, every field of shape [n]."""

    radius: Floats
    """Half-light radius of the disc."""
    bulge: Floats
    """Share of the light in the bulge."""
    sersic_n: Floats
    """Sersic index of the bulge: 4 is de Vaucouleurs' law, 1 an exponential."""
    axis_ratio: Floats
    """Of the disc as it is seen, the cosine of its inclination."""
    arms: NDArray[np.int64]
    """0, 2, 3 or 4."""
    pitch_rad: Floats
    """How steeply the arms wind; negative: the other way round."""
    contrast: Floats
    """Of the arms, 0 to 1."""
    brightness: Floats
    """Of the whole."""

    @classmethod
    def drawn(cls, n: int, rng: np.random.Generator) -> "Galaxies":
        """A mixture of ellipticals (a third) and spirals."""
        spiral = rng.random(n) > 1 / 3
        return cls(
            radius=rng.uniform(0.2, 0.3, n),
            bulge=np.where(spiral, rng.uniform(0.1, 0.4, n), rng.uniform(0.8, 1.0, n)),
            sersic_n=np.where(spiral, rng.uniform(1, 2.5, n), rng.uniform(2.5, 4.5, n)),
            axis_ratio=np.where(spiral, rng.uniform(0.25, 1, n), rng.uniform(0.5, 1, n)),
            arms=np.where(spiral, rng.choice([2, 2, 2, 3, 4], n), 0),
            pitch_rad=np.radians(rng.uniform(12, 30, n)) * rng.choice([-1, 1], n),
            contrast=np.where(spiral, rng.uniform(0.4, 0.95, n), 0.0),
            brightness=rng.uniform(0.8, 1.3, n),
        )

    def __getitem__(self, rows: slice) -> "Galaxies":
        return Galaxies(**{name: values[rows] for name, values in vars(self).items()})


def _sersic(r: Floats, radius: Floats, n: Floats) -> Floats:
    """``exp(-b ((r / radius)^(1/n) - 1))``, 1 at the half-light radius; b after Ciotti and Bertin, A&A 352, 447 (1999)."""
    b = 2 * n - 1 / 3 + 4 / (405 * n)
    return np.exp(-b * ((r / radius) ** (1 / n) - 1))


def render(galaxies: Galaxies, pose: Pose2D, box: int, noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Pictures [n, box, box, 3] of galaxies at n poses (shifts in pixels), with a sky of some noise."""
    n, over = len(pose), 2
    fine = (np.arange(box * over) + 0.5) / over - 0.5 - box // 2
    y, x = np.meshgrid(fine, fine, indexing="ij")
    cos, sin = (f(pose.theta_rad)[:, None, None] for f in (np.cos, np.sin))
    shift_x, shift_y = (pose.shift_px[:, k, None, None] for k in (0, 1))
    u, v = (at / box for at in geometry.image_to_object_xy(x[None], y[None], cos, sin, shift_x, shift_y))
    of = {name: values[:, None, None] for name, values in vars(galaxies).items()}
    # The long axis of every galaxy lies along x before it is posed.
    flat, phi = np.hypot(u, v / of["axis_ratio"]), np.arctan2(v / of["axis_ratio"], u)
    round_r = np.hypot(u, v / np.sqrt(of["axis_ratio"]))
    bulge = 0.5 * of["bulge"] * _sersic(round_r + 1e-6, 0.45 * of["radius"], of["sersic_n"])
    # A logarithmic spiral, beginning at the same angle at the half-light radius.
    wave = np.cos(of["arms"] * (phi - np.log((flat + 0.02) / of["radius"]) / np.tan(of["pitch_rad"])))
    arms = np.where(of["arms"] > 0, of["contrast"] * np.clip(flat / of["radius"], 0, 1) * wave, 0)
    disc = 0.35 * (1 - of["bulge"]) * _sersic(flat, of["radius"], np.ones_like(flat)) * (1 + arms)
    young = (disc * np.clip(0.5 + 0.5 * arms, 0, 1))[..., None]
    light = bulge[..., None] * OLD + (disc[..., None] - young) * (OLD + YOUNG) / 2 + young * YOUNG * 1.3
    light = light.reshape(n, box, over, box, over, 3).mean((2, 4)) * of["brightness"][..., None]
    stretched = np.arcsinh(3 * light) / np.arcsinh(9)  # as survey pictures are, so that faint arms show
    stretched += 0.04 + noise * rng.standard_normal(stretched.shape)
    return (255 * stretched.clip(0, 1)).round().astype(np.uint8)

"""Results made up without a model."""

import numpy as np

from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.results.latents import Latents

PREPARED_A = 3.0


def classified(n: int, unused: tuple[int, ...] = ()) -> Latents:
    """Results of n particles with classes 1 to 3."""
    rng = np.random.default_rng(11)
    used = np.ones(n, dtype=bool)
    used[list(unused)] = False
    return Latents(
        names=np.array([f"{i}" for i in range(n)], dtype=object),
        used=used,
        z=rng.normal(size=(n, 2)),
        z_sd=rng.random((n, 2)),
        pose=Pose2D(rng.uniform(-3, 3, n), rng.normal(size=(n, 2))),
        theta_sd_rad=rng.random(n),
        shift_sd_px=rng.random((n, 2)),
        log_likelihood=rng.normal(size=n),
        pixel_size_A=PREPARED_A,
        class_number=np.where(used, 1 + np.arange(n) % 3, 0),
        class_posterior=np.where(used, np.linspace(0.4, 1, n), 0),
    )

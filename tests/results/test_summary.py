"""What a run says of itself in a few lines."""

import numpy as np
import pytest

from emspatialvae.config import ModelConfig
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.results.latents import Latents
from emspatialvae.results.summary import sureness


def latents(z_sds: tuple[float, ...], n: int = 200) -> Latents:
    """Particles whose posterior means of z vary by so much."""
    z = np.random.default_rng(0).normal(size=(n, len(z_sds))) * np.array(z_sds)
    pose = Pose2D(np.zeros(n), np.zeros((n, 2)))
    sd = np.full((n, 2), 0.5)
    used = np.ones(n, dtype=np.bool_)
    return Latents(np.arange(n), used, z, np.ones_like(z), pose, np.radians(np.full(n, 3.0)), sd, np.zeros(n), 4.0)


@pytest.mark.parametrize(("z_sds", "expected"), [((1.0, 0.02, 0.3), "2 of 3"), ((0.02,), "0 of 1")])
def test_coordinates_that_say_something_are_counted(z_sds, expected):
    line = sureness(latents(z_sds), ModelConfig())[0]
    assert line.startswith("latent") and expected in line
    assert ("no differences" in line) == (expected[0] == "0")


def test_what_is_not_inferred_is_not_said():
    said = sureness(latents((1.0,)), ModelConfig(translate=False))
    assert [line.split()[0] for line in said] == ["latent", "theta"]
    assert "3 degrees" in said[1]

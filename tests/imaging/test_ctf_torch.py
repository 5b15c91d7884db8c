"""Our CTF against that of torch-ctf (teamtomo), which was written apart from it; skips where the package is not installed.

Defocus in angstrom here and in micrometres there, both underfocus positive; both measure the astigmatism angle from the x axis. What is
left, a thousandth, is the wavelength: RELION's constants (ours) are rounded.
"""

import numpy as np
import pytest

from emspatialvae.imaging.ctf import CtfParams, ctf_2d

torch_ctf = pytest.importorskip("torch_ctf", reason="torch-ctf is not installed")
AGREES = 0.003


@pytest.mark.parametrize("box", [64, 65])
@pytest.mark.parametrize(
    ("defocus_u_A", "defocus_v_A", "angle_deg", "phase_deg", "voltage_kV", "cs_mm", "contrast", "pixel_size_A"),
    [
        (15_000, 12_000, 25, 0, 300, 2.7, 0.1, 1.3),
        (12_000, 15_000, 25, 0, 300, 2.7, 0.1, 1.3),
        (8_000, 6_000, 140, 30, 300, 0.01, 0.1, 1.1),
        (20_500, 20_000, -70, 60, 200, 1.4, 0.07, 2.0),
        (9_000, 9_000, 0, 0, 100, 2.0, 0.0, 3.0),
    ],
)
def test_two_programs_agree(
    box, defocus_u_A, defocus_v_A, angle_deg, phase_deg, voltage_kV, cs_mm, contrast, pixel_size_A
):
    values = (defocus_u_A, defocus_v_A, np.radians(angle_deg), np.radians(phase_deg), voltage_kV, cs_mm, contrast)
    ours = ctf_2d(CtfParams(*(np.array([value], float) for value in values)), box, pixel_size_A)[0]
    # It knows positive astigmatism only: the same ellipse with its axes named the other way round.
    if defocus_u_A < defocus_v_A:
        defocus_u_A, defocus_v_A, angle_deg = defocus_v_A, defocus_u_A, angle_deg + 90
    theirs = torch_ctf.calculate_ctf_2d(
        defocus=(defocus_u_A + defocus_v_A) / 2e4,
        astigmatism=(defocus_u_A - defocus_v_A) / 2e4,
        astigmatism_angle=angle_deg,
        voltage=voltage_kV,
        spherical_aberration=cs_mm,
        amplitude_contrast=contrast,
        phase_shift=phase_deg,
        pixel_size=pixel_size_A,
        image_shape=(box, box),
        rfft=True,
        fftshift=False,
    ).numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=AGREES)
    # Were the angle measured from the other axis, they would be far apart.
    assert defocus_u_A == defocus_v_A or np.abs(ours - theirs[:, ::-1]).max() > 0.5

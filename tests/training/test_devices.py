"""Every operation on the model's device, shown without a GPU: on one that refuses to be mixed with the CPU (`tests.tools.stand_in_device`)."""

import numpy as np
import pytest
import torch

if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch has no devices written in Python", allow_module_level=True)

from emspatialvae.results.read_run import read_latents
from emspatialvae.training import table_objective
from emspatialvae.training.latent_count import FEWEST_EPOCHS
from emspatialvae.training.trainer import Trainer
from tests.tools.stand_in_device import DEVICE, MixedDevices, There, stand_in, waits

MOST_WAITS = {"steerable": 10, "coordinate": 2}
"""In a step: what is kept of each particle comes back to the CPU, and the sums over the batch."""
RARE_WAITS = 2
"""More in one step of many, where some particles need a look of their own."""
MODULES_THAT_PICK = ("model.device", "inference.infer")


def test_it_refuses_what_a_gpu_would_refuse():
    with stand_in() as device:
        a = torch.ones(3, device=device)
        assert isinstance(a, There) and (2 * a).device == device
        with pytest.raises(MixedDevices):
            a + torch.ones(3)
        with pytest.raises(MixedDevices):
            torch.randn(3, device=device, generator=torch.Generator())
        with pytest.raises((RuntimeError, TypeError)):
            a.numpy()
        assert float(a.sum()) == 3.0 and waits == {"a number": 1}


@pytest.mark.parametrize(
    ("engine", "words", "off"),
    [
        pytest.param("steerable", (), 3e-3, marks=pytest.mark.slow),
        # Long enough for a second coordinate to be added and z to be laid out anew; what rounding does grows with each step.
        pytest.param("steerable", ("--z-dim", "2", "--epochs", str(FEWEST_EPOCHS)), 0.2, marks=pytest.mark.slow),
        ("coordinate", (), 1e-3),
    ],
)
def test_a_run_on_another_device_ends_as_one_on_the_cpu(emsvae, clear_stack, tmp_path, monkeypatch, engine, words, off):
    stack = clear_stack / "particles.star"
    common = ("train", stack, *emsvae.TINY, *words, "--engine", engine, "--precision", "float32")
    monkeypatch.setattr(table_objective, "PARTS_OF_A_BATCH", 1)  # a GPU takes the whole batch at once
    emsvae.done(*common, "--out", tmp_path / "cpu")
    for module in MODULES_THAT_PICK:
        monkeypatch.setattr(f"emspatialvae.{module}.pick_device", lambda _: DEVICE)
    per_step: list[int] = []
    step = Trainer.step

    def counted(self, rows, interrupted):
        before = waits.total()
        end = step(self, rows, interrupted)
        per_step.append(waits.total() - before)
        return end

    monkeypatch.setattr(Trainer, "step", counted)
    with stand_in():
        emsvae.done(*common, "--out", tmp_path / "there")
    here, there = read_latents(tmp_path / "cpu")[1], read_latents(tmp_path / "there")[1]
    np.testing.assert_allclose(here.z, there.z, atol=off)
    turn = np.angle(np.exp(1j * (here.pose.theta_rad - there.pose.theta_rad)))
    assert np.abs(turn).max() < off
    np.testing.assert_allclose(here.pose.shift_px, there.pose.shift_px, atol=off)
    assert len(per_step) >= 2
    assert np.median(per_step) <= MOST_WAITS[engine]
    assert max(per_step) <= MOST_WAITS[engine] + RARE_WAITS

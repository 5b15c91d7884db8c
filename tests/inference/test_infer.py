"""Inference of whole stacks: parts of it side by side, each result in the place of its particle."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from emspatialvae.config import TrainConfig
from emspatialvae.inference.infer import infer
from emspatialvae.model import device
from emspatialvae.model.batch import Batch
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.model.steerable.initialise import new_model
from emspatialvae.preprocess.preparation import Portion
from emspatialvae.results.latents import Latents
from tests.tools.hinges import CONFIGS, noisy_hinges

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Sets torch's number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("given", "side_by_side", "each"), [(1, 1, 1), (2, 2, 1), (16, 8, 2)])
def test_threads_are_shared_out(threads, given, side_by_side, each):
    """To parts of the work first, what is left to the operations of each; afterwards all is as it was."""
    threads(given)
    with device.side_by_side(CPU) as count, ThreadPoolExecutor(count) as pool:
        assert count == side_by_side
        assert [pool.submit(torch.get_num_threads).result() for _ in range(count)] == [each] * count
    assert torch.get_num_threads() == given
    with pytest.raises(KeyError), device.side_by_side(CPU):
        raise KeyError
    assert torch.get_num_threads() == given


def test_a_gpu_does_one_thing_at_a_time(threads):
    threads(2)
    with device.side_by_side(torch.device("cuda")) as count:
        assert count == 1 and torch.get_num_threads() == 2


def test_a_stack_side_by_side_is_the_stack(threads):
    """Portions in any order, some images unusable: the same numbers in the same rows, whatever the threads."""
    images = noisy_hinges(700, 5, 32)
    torch.manual_seed(0)
    model = new_model(CONFIGS["z1"], ImageSpec(32, 14.4, 1.5, 6.0), 1, lambda: [Batch.of(images, np.zeros(700))])
    rows = np.random.default_rng(0).permutation(700)
    usable = np.ones(700, dtype=np.bool_)
    usable[[3, 350]] = False

    def portions() -> list[Portion]:
        parts = (rows[:400], rows[400:403], rows[403:])
        return [Portion(part, images[part], usable[part], np.zeros(len(part), dtype=np.int32)) for part in parts]

    found: list[Latents] = []
    for count in (1, 3):
        threads(count)
        found.append(infer(model, portions(), np.arange(700), 1.0, TrainConfig(device="cpu")))
    one, three = (dataclasses.asdict(latents) for latents in found)
    assert np.array_equal(found[0].used, usable)
    assert np.abs(found[0].z[usable]).min() > 0 and not found[0].z[~usable].any()
    for name, values in one.items():
        if isinstance(values, np.ndarray) and values.dtype == float:
            np.testing.assert_allclose(values, three[name], atol=1e-3, err_msg=name)
    np.testing.assert_allclose(found[0].pose.shift_px, found[1].pose.shift_px, atol=1e-3)

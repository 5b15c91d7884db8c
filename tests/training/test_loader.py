"""Batches come to the device: all images there from the start, or the next ones while the present ones are worked on."""

import numpy as np
import pytest
import torch

if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch has no devices written in Python", allow_module_level=True)

from emspatialvae.preprocess.cache import PreparedImages
from emspatialvae.training import loader
from emspatialvae.training.loader import Loader
from tests.tools.stand_in_device import stand_in

N, BOX = 9, 8


@pytest.fixture(params=[False, True])
def images(request):
    rng = np.random.default_rng(0)
    shape = (N, 3, BOX, BOX) if request.param else (N, BOX, BOX)
    power = None if request.param else rng.uniform(size=(N, BOX // 2 + 1)).astype(np.float32)
    return PreparedImages(
        rng.normal(size=shape).astype(np.float16), np.ones(N, bool), np.arange(N, dtype=np.int32) % 2, power
    )


def assert_alike(one, other):
    assert other.images.dtype == torch.float32
    for name, values in vars(one).items():
        found = getattr(other, name)
        assert (values is None) == (found is None), name
        if values is not None:
            assert torch.equal(values, found.cpu()), name


@pytest.mark.parametrize("room", [1 << 30, 0])
def test_a_device_gets_what_the_cpu_gets(images, monkeypatch, room):
    monkeypatch.setattr(loader, "room_bytes", lambda _: room)
    monkeypatch.setattr(loader, "COPIED_ROWS", 4)
    here = Loader(images, torch.device("cpu"))
    with stand_in() as device:
        there = Loader(images, device)
        for rows in (np.array([5, 0, 8]), np.array([1]), np.arange(N)):
            there.expect(rows)
            found = there.load(rows)
            assert found.images.device == device
            assert_alike(here.load(rows), found)
        there.expect(np.array([2, 3]))
        assert_alike(here.load(np.array([4, 3])), there.load(np.array([4, 3])))  # something else than was announced


def test_the_next_batch_is_read_ahead(images, monkeypatch):
    monkeypatch.setattr(loader, "room_bytes", lambda _: 0)
    read = []
    whole = Loader._read

    def noted(self, rows):
        read.append(rows.tolist())
        return whole(self, rows)

    monkeypatch.setattr(Loader, "_read", noted)
    with stand_in() as device:
        there = Loader(images, device)
        there.expect(np.array([2, 3]))
        there._pool.shutdown()  # waits for what is being read
        assert read == [[2, 3]]
        there.load(np.array([2, 3]))
    assert read == [[2, 3]]

"""`LazyImages` indexes as the array would that it stands for, and makes only what is asked for."""

import numpy as np
import pytest

from emspatialvae.errors import EmsvaeError
from napari_emsvae.layers.lazy_images import LazyImages

IMAGES = np.arange(10 * 4 * 4, dtype=np.float32).reshape(10, 4, 4)
KEYS = [
    3,
    -1,
    np.int64(2),
    slice(2, 5),
    slice(None, None, -3),
    ...,
    (),
    (3,),
    (3, 1, 2),
    (3, slice(1, 3)),
    (slice(None), 2),
    (slice(4, 6), slice(None), slice(1, None, 2)),
    (..., 1),
    (5, ..., 0),
    (slice(None), 2, slice(None), ...),
    [7, 1, 1],
    np.arange(10) % 3 == 0,
]


@pytest.fixture
def made():
    return []


@pytest.fixture
def lazy(made):
    def make(rows):
        made.extend(rows.tolist())
        return IMAGES[rows]

    return LazyImages(10, 4, make)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexes_as_numpy_does(lazy, key):
    np.testing.assert_array_equal(lazy[key], IMAGES[key])


def test_is_an_array_to_whoever_asks(lazy):
    assert (lazy.shape, lazy.ndim, lazy.size, lazy.dtype, len(lazy)) == ((10, 4, 4), 3, 160, np.float32, 10)
    np.testing.assert_array_equal(np.asarray(lazy), IMAGES)
    assert np.array(lazy, dtype=np.float64).dtype == np.float64
    assert len(list(lazy)) == 10
    with pytest.raises(IndexError):
        lazy[10]


def test_makes_only_what_is_asked_for(lazy, made):
    lazy[4, 1:3]
    lazy[6:8]
    assert made == [4, 6, 7]


def test_refuses_what_does_not_fit_into_memory():
    lazy = LazyImages(100_000, 512, lambda rows: pytest.fail("made"))
    for ask in (lambda: lazy[:], lambda: lazy[:, 5, :], lambda: np.asarray(lazy)):
        with pytest.raises(EmsvaeError, match="one particle at a time") as caught:
            ask()
        assert "\n" not in str(caught.value)

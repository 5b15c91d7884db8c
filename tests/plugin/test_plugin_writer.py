"""The writer: what napari saves as .mrcs is what it shows, with its pixel size."""

import numpy as np
import pytest

from emspatialvae.errors import EmsvaeError, OutputExistsError
from emspatialvae.io.mrc import read_header, read_images
from napari_emsvae import writer
from napari_emsvae.reader import read_particles
from napari_emsvae.writer import write_stack


def images_of(path):
    header = read_header(path)
    return header, read_images(header, np.arange(header.n_images))


def test_the_readers_layer_comes_back(simulated, tmp_path, monkeypatch):
    ((data, meta, _),) = read_particles(simulated / "particles.star")
    monkeypatch.setattr(writer, "CHUNK_BYTES", 7 * 32 * 32 * 4)  # seven images at a time
    out = tmp_path / "copy.mrcs"
    assert write_stack(str(out), data, meta) == [str(out)]
    header, images = images_of(out)
    assert header.pixel_size_A == pytest.approx(4.0)
    np.testing.assert_array_equal(images, data[:])


def test_napari_saves_through_it(model, simulated, tmp_path):
    (layer,) = model.open(str(simulated / "particles.star"), plugin="emspatialvae")
    out = tmp_path / "saved.mrcs"
    assert layer.save(str(out)) == [str(out)]
    assert read_header(out).pixel_size_A == pytest.approx(4.0) and read_header(out).n_images == 60
    plain = model.add_image(np.arange(16.0).reshape(4, 4))
    assert plain.save(str(tmp_path / "plain.mrc")) == [str(tmp_path / "plain.mrc")]
    header, images = images_of(tmp_path / "plain.mrc")
    assert header.pixel_size_A is None  # napari's pixels are no angstrom
    np.testing.assert_array_equal(images[0], plain.data)
    # Other formats stay napari's own.
    assert plain.save(str(tmp_path / "plain.tif"))


def test_a_film_beside_the_particle_slider_is_written_once(tmp_path):
    film = np.random.default_rng(0).random((5, 8, 8), dtype=np.float32)
    shown = np.broadcast_to(film[:, None], (5, 1000, 8, 8))
    write_stack(
        str(tmp_path / "film.mrcs"),
        shown,
        {"scale": (1, 1, 2.5, 2.5), "units": ("pixel", "pixel", "angstrom", "angstrom")},
    )
    header, images = images_of(tmp_path / "film.mrcs")
    assert header.n_images == 5 and header.pixel_size_A == pytest.approx(2.5)
    np.testing.assert_array_equal(images, film)


@pytest.mark.parametrize(
    ("data", "meta", "said"),
    [
        (np.zeros((4, 5)), {}, "4 x 5 pixels"),
        (np.zeros((4, 4, 3), np.uint8), {"rgb": True}, "colours"),
        (np.full((2, 4, 4), np.nan), {}, "not finite"),
    ],
)
def test_what_a_stack_cannot_hold_is_said_and_nothing_written(tmp_path, data, meta, said):
    with pytest.raises(EmsvaeError, match=said):
        write_stack(str(tmp_path / "x.mrcs"), data, meta)
    assert list(tmp_path.iterdir()) == []


def test_a_name_without_an_ending_gets_one_and_nothing_is_replaced_unasked(tmp_path):
    data = np.zeros((1, 4, 4))
    assert write_stack(str(tmp_path / "x"), data, {}) == [str(tmp_path / "x.mrcs")]
    with pytest.raises(OutputExistsError):
        write_stack(str(tmp_path / "x"), data, {})
    write_stack(str(tmp_path / "x.mrcs"), data + 1, {})  # here the dialog has asked
    assert images_of(tmp_path / "x.mrcs")[1].max() == 1

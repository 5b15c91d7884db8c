"""HDF5 stacks: EMAN2's layout and a plain dataset; what is none of them is refused in a line."""

import sys
from pathlib import Path

import numpy as np
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.io.mrc import read_header, read_images
from emspatialvae.particles.load import load_particles

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
IMAGES = np.random.default_rng(0).normal(size=(12, 24, 24)).astype(np.float32)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def eman(path: Path, images, pixel_size_A: float | None = 1.77) -> Path:
    """As EMAN2 writes it: a group for each image, numbers as names (10 comes before 2 in the file), attributes beside the image."""
    with h5py.File(path, "w") as file:
        groups = file.create_group("MDF/images")
        for number, image in enumerate(images):
            group = groups.create_group(str(number))
            group["image"] = image
            if pixel_size_A is not None:
                group.attrs["EMAN.apix_x"] = pixel_size_A
    return path


def test_eman_stacks_in_the_order_of_their_numbers():
    header = read_header(eman(Path("e.hdf"), IMAGES))
    assert (header.n_images, header.height, header.width) == (12, 24, 24)
    assert header.pixel_size_A == pytest.approx(1.77)
    np.testing.assert_array_equal(read_images(header, [11, 2, 2, 10]), IMAGES[[11, 2, 2, 10]])


def test_one_dataset():
    with h5py.File("d.h5", "w") as file:
        file["a/b/images"] = IMAGES.astype(np.float16)
        file["a/angles"] = np.zeros((12, 3))
    header = read_header(Path("d.h5"))
    assert header.pixel_size_A is None
    np.testing.assert_array_equal(read_images(header, range(12)), IMAGES.astype(np.float16))


def test_bare_and_in_a_star_file(emsvae):
    eman(Path("e.hdf"), IMAGES)
    np.testing.assert_array_equal(load_particles(InputConfig(Path("e.hdf"))).images([3]), IMAGES[[3]])
    Path("p.star").write_text("data_\n\nloop_\n_rlnImageName #1\n12@e.hdf\n1@e.hdf\n\n")
    np.testing.assert_array_equal(load_particles(InputConfig(Path("p.star"))).images([0, 1]), IMAGES[[11, 0]])
    assert "e.hdf: an HDF5 file: every command unpacks it" in emsvae.done("info", "p.star").out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no images"),
        ([IMAGES[0], IMAGES[1, :20]], r"image 2 is float32 of shape \(20, 24\)"),
        ([IMAGES], r"image 1 is float32 of shape \(12, 24, 24\)"),
        ([IMAGES[0] + 1j], "complex64"),
    ],
)
def test_what_is_no_stack(content, message):
    with pytest.raises(ParticleFileError, match=message):
        read_header(eman(Path("e.hdf"), content))


def test_other_layouts_damage_and_a_missing_package(emsvae, monkeypatch):
    with h5py.File("two.hdf", "w") as file:
        file["a"], file["b"] = IMAGES, IMAGES
    assert "2 datasets of three dimensions" in emsvae.refused("info", "two.hdf")
    whole = eman(Path("e.hdf"), IMAGES).read_bytes()
    for length in (20, 600, len(whole) // 2):
        Path("cut.hdf").write_bytes(whole[:length])
        assert "cut.hdf is a damaged HDF5 file" in emsvae.refused("info", "cut.hdf")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert 'pip install "emspatialvae[hdf5]"' in emsvae.refused("info", "e.hdf")

"""Images, volumes and tilt stacks under one label: what is no 2-D image is refused by its name, one-image files are read."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.io.star import StarFile
from emspatialvae.particles.find_particle import find_particle
from emspatialvae.particles.load import load_particles
from emspatialvae.particles.read_star import particle_block

OPTICS = "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n_rlnImageDimensionality #3\n1 4.0 {dimensions}\n\n"


def write_images(path: Path, shape, *, volume=False, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(seed).normal(size=shape).astype("f4")
    with mrcfile.new(path) as file:
        file.set_data(images)
        file.voxel_size = 4.0
        if volume:
            file.set_volume()
        else:
            file.set_image_stack() if images.ndim == 3 else None
    return images


def write_star(path: Path, names, *, dimensions=2, more="", block="particles", before="") -> Path:
    labels = f"_rlnImageName #1\n_rlnOpticsGroup #2\n{more and f'_{more} #3'}\n".replace("\n\n", "\n")
    rows = "".join(f"{name} 1{' 1' if more else ''}\n" for name in names)
    text = f"# version 30001\n\n{before}{OPTICS.format(dimensions=dimensions)}data_{block}\n\nloop_\n{labels}{rows}\n"
    path.write_text(text)
    return path


def refused(path) -> str:
    with pytest.raises(ParticleFileError) as caught:
        load_particles(InputConfig(path))
    return str(caught.value)


def test_subtomograms_by_their_dimensionality(tmp_path):
    write_images(tmp_path / "x.mrc", (16, 16, 16), volume=True)
    said = refused(write_star(tmp_path / "p.star", ["000001@x.mrc"], dimensions=3))
    assert "subtomograms" in said and "rlnImageDimensionality is 3" in said and "project" in said


@pytest.mark.parametrize("name", ["000001@{}", "{}"])
def test_volumes_that_no_table_calls_so(tmp_path, name):
    names = [f"{k}.mrc" for k in range(3)]
    for file in names:
        write_images(tmp_path / file, (16, 16, 16), volume=True)
    said = refused(write_star(tmp_path / "p.star", [name.format(file) for file in names]))
    assert "subtomograms" in said and "0.mrc is 16 x 16 x 16" in said


def test_a_stack_with_as_many_images_as_pixels_is_a_stack(tmp_path):
    images = write_images(tmp_path / "s.mrc", (16, 16, 16))
    stack = load_particles(InputConfig(write_star(tmp_path / "p.star", [f"{k}@s.mrc" for k in range(1, 17)])))
    np.testing.assert_array_equal(stack.images(slice(None)), images)


def test_names_without_a_number_are_files_of_one_image(tmp_path):
    first, second = write_images(tmp_path / "a.mrc", (16, 16)), write_images(tmp_path / "b.mrcs", (1, 16, 16), seed=1)
    more = write_images(tmp_path / "c.mrcs", (4, 16, 16), seed=2)
    star = write_star(tmp_path / "p.star", ["b.mrcs", "3@c.mrcs", "a.mrc"])
    stack = load_particles(InputConfig(star))
    np.testing.assert_array_equal(stack.images([0, 1, 2]), np.stack([second[0], more[2], first]))
    assert find_particle(stack.names, "a.mrc") == 2 and find_particle(stack.names, "3@c.mrcs") == 1
    with pytest.raises(EmsvaeError, match="no particle"):
        find_particle(stack.names, "c.mrcs")
    said = refused(write_star(tmp_path / "p.star", ["b.mrcs", "c.mrcs"]))
    assert "'c.mrcs' of particle 2" in said and "holds 4 images" in said and "N@stack.mrcs" in said


def test_tilt_stacks_are_named_as_such(tmp_path):
    write_images(tmp_path / "TS_01" / "1_stack2d.mrcs", (5, 16, 16))
    general = "data_general\n\n_rlnTomoSubTomosAre2DStacks 1\n\n"
    name = "TS_01/1_stack2d.mrcs"
    for more, before in (("", ""), ("rlnTomoName", ""), ("rlnTomoVisibleFrames", general)):
        said = refused(write_star(tmp_path / "p.star", [name], more=more, before=before))
        assert "2-D tilt stack" in said and name in said and "one image per particle" in said
    # RELION 4 without 2-D stacks, and RELION 5 that says so.
    for before in ("", general.replace(" 1\n", " 0\n")):
        said = refused(write_star(tmp_path / "p.star", ["TS_01/1_data.mrc"], more="rlnTomoName", before=before))
        assert "subtomograms" in said and "TS_01/1_data.mrc" in said


@pytest.mark.parametrize("block", ["Particles", "my_set", "images", "0"])
def test_the_only_block_with_images_is_taken_whatever_its_name(tmp_path, emsvae, block, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "s.mrcs", (4, 16, 16))
    star = write_star(tmp_path / "p.star", [f"{k}@s.mrcs" for k in range(1, 5)], block=block)
    assert len(load_particles(InputConfig(star))) == 4
    emsvae.done("select", star, "--where", "'3@' in rlnImageName", "--out", "s.star")
    kept = particle_block(StarFile.read(tmp_path / "s.star"))
    assert (kept.name, kept.columns("rlnImageName")["rlnImageName"]) == (block, ["3@s.mrcs"])


def test_of_several_blocks_one_must_have_the_usual_name(tmp_path):
    write_images(tmp_path / "s.mrcs", (4, 16, 16))
    star = write_star(tmp_path / "p.star", ["1@s.mrcs"], block="first")
    star.write_text(star.read_text() + "data_second\n\nloop_\n_rlnImageName #1\n2@s.mrcs\n\n")
    said = refused(star)
    assert "data_first, data_second" in said and "data_particles" in said
    star.write_text(star.read_text().replace("data_second", "data_particles"))
    assert load_particles(InputConfig(star)).names.tolist() == ["2@s.mrcs"]

"""The reader: what is ours, which layers come of it, whether their pixels are the right ones and lie where they should."""

import json
import shutil
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.errors import EmsvaeError, ParticleFileError, RunFolderError
from emspatialvae.imaging import alignment, resampling
from emspatialvae.imaging.geometry import Pose2D, pixel_grid
from emspatialvae.io import cs
from emspatialvae.io.mrc import StackWriter
from emspatialvae.particles.load import load_particles
from emspatialvae.results.latents import Latents
from emspatialvae.results.read_run import read_run
from napari_emsvae.layers.images import Grid, aligned_images, raw_images
from napari_emsvae.reader import get_reader

CONSTANT = 7


def read(path):
    reader = get_reader(str(path))
    assert reader is not None
    return reader(str(path))


def one_layer(path):
    ((data, settings, kind),) = read(path)
    assert kind == "image"
    return data, settings, settings["metadata"]["emsvae"]


def write_stack(path, images, pixel_size_A: float | None = 4.0):
    with StackWriter(path, len(images), images.shape[-1], pixel_size_A, overwrite=True) as writer:
        writer.append(images)
    return path


def spot(box, x, y, width=1.5):
    """A round spot at (x, y) pixels from the centre; shape [box, box]."""
    grid_x, grid_y = pixel_grid(box)
    return np.exp(-((grid_x - x) ** 2 + (grid_y - y) ** 2) / (2 * width**2)).astype(np.float32)


def world_centroid(image, grid):
    """Centre of mass in angstrom, (x, y), as napari places the image."""
    axis = np.arange(grid.box) * grid.pixel_size_A + grid.translate_A
    weight = np.clip(image, 0.05 * image.max(), None) - 0.05 * image.max()
    return (weight.sum(0) @ axis) / weight.sum(), (weight.sum(1) @ axis) / weight.sum()


# ----------------------------------------------------------------------------------------------------- what is ours


@pytest.mark.parametrize("name", ["image.png", "map.mrc", "table.csv", "README", "nowhere/at/all", "star"])
def test_other_files_are_not_ours(tmp_path, name):
    assert get_reader(str(tmp_path / name)) is None


@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "[1, 2]", '"format emspatialvae"', "{broken", None])
def test_other_folders_are_not_ours(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert get_reader(str(tmp_path)) is None


def test_odd_paths_are_not_ours(tmp_path, simulated):
    (tmp_path / "folder.star").mkdir()
    assert get_reader(str(tmp_path / "folder.star")) is None
    assert get_reader([str(simulated / "particles.star")]) is None
    (tmp_path / "config.json").write_text('{"format": 1, "emspatialvae": "0", "x": "' + "x" * (2 << 20) + '"}')
    assert get_reader(str(tmp_path)) is None


def test_asking_imports_nothing_heavy_and_a_stack_needs_no_torch(simulated):
    code = f"""
import sys
from napari_emsvae.reader import get_reader
reader = get_reader({str(simulated / "particles.star")!r})
print([m for m in ("torch", "pandas", "numpy", "napari", "qtpy", "emspatialvae.particles.load") if m in sys.modules])
reader({str(simulated / "particles.star")!r})[0][0][3]
print([m for m in ("torch", "napari", "qtpy") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


# ------------------------------------------------------------------------------------------------------------ stacks


def test_star(simulated):
    data, settings, info = one_layer(simulated / "particles.star")
    stack = load_particles(InputConfig(simulated / "particles.star"))
    assert data.shape == (60, 32, 32)
    np.testing.assert_array_equal(np.asarray(data), stack.images(slice(None)))
    np.testing.assert_array_equal(data[11], stack.images([11])[0])
    assert settings["name"] == "particles" and settings["colormap"] == "gray"
    assert settings["scale"] == (1, 4, 4) and settings["units"] == ("pixel", "angstrom", "angstrom")
    assert info["source"] == str(simulated / "particles.star") and info["run"] is None
    assert info["pixel_size_known"] and info["pixel_size_A"] == 4 and not info["resampled"]
    assert info["names"].tolist() == stack.names.tolist()
    low, high = settings["contrast_limits"]
    assert 0.98 < ((low <= np.asarray(data)) & (np.asarray(data) <= high)).mean() < 1


def test_order_is_that_of_the_metadata_not_of_the_stack(simulated, tmp_path):
    text = (simulated / "particles.star").read_text().splitlines()
    rows = [line for line in text if "@" in line]
    head = text[: text.index(rows[0])]
    (tmp_path / "reversed.star").write_text("\n".join([*head, *reversed(rows)]) + "\n")
    shutil.copy(simulated / "particles.mrcs", tmp_path)
    data, _, info = one_layer(tmp_path / "reversed.star")
    stack = load_particles(InputConfig(simulated / "particles.star"))
    assert info["names"].tolist() == stack.names[::-1].tolist()
    np.testing.assert_array_equal(data[0], stack.images([59])[0])


def test_bare_stack(simulated):
    data, settings, _ = one_layer(simulated / "particles.mrcs")
    np.testing.assert_array_equal(data[5], load_particles(InputConfig(simulated / "particles.star")).images([5])[0])
    assert settings["scale"] == (1, 4, 4)


def test_cryosparc(simulated, tmp_path):
    table = np.zeros(3, [("uid", "<u8"), ("blob/path", "S20"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")])
    table["uid"], table["blob/path"] = [5, 6, 7], b">particles.mrcs"
    table["blob/idx"], table["blob/psize_A"] = [9, 0, 4], 4
    cs.write_cs(tmp_path / "particles.cs", table, overwrite=False)
    shutil.copy(simulated / "particles.mrcs", tmp_path)
    data, settings, _ = one_layer(tmp_path / "particles.cs")
    expected = load_particles(InputConfig(simulated / "particles.star")).images([9, 0, 4])
    np.testing.assert_array_equal(np.asarray(data), expected)
    assert settings["scale"] == (1, 4, 4)


def test_unknown_pixel_size_still_opens_and_says_so(tmp_path):
    images = np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32)
    data, settings, info = one_layer(write_stack(tmp_path / "bare.mrcs", images, None))
    np.testing.assert_array_equal(np.asarray(data), images)
    assert settings["scale"] == (1, 1, 1) and settings["units"] == ("pixel",) * 3
    assert "pixel size unknown" in settings["name"] and info["pixel_size_known"] is False


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_constant_images_get_usable_contrast(tmp_path, value):
    _, settings, _ = one_layer(write_stack(tmp_path / "flat.mrcs", np.full((2, 16, 16), value, np.float32)))
    low, high = settings["contrast_limits"]
    assert low < high


def test_a_stack_of_26_gigabytes_opens_at_once(tmp_path):
    n, box = 100_000, 256
    path = write_stack(tmp_path / "big.mrcs", np.ones((1, box, box), np.float32))
    with path.open("r+b") as stream:
        stream.seek(8)
        stream.write(np.int32(n).tobytes())
        stream.truncate(1024 + 4 * n * box**2)
    tracemalloc.start()
    start = time.perf_counter()
    data, _, _ = one_layer(path)
    first, last = data[0], data[n - 1]
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.shape == (n, box, box) and first.mean() == 1 and last.mean() == 0
    assert seconds < 10 and peak < 200e6
    with pytest.raises(EmsvaeError, match="GB of memory"):
        data[:, 3]


def test_several_boxes_and_pixel_sizes_share_one_grid(tmp_path):
    """Two thirds of the particles have 32 px of 4 A, one third 48 px of 3 A; spots 16 A right of and 8 A above the centre."""
    write_stack(tmp_path / "a.mrcs", np.stack([spot(32, 4, -2)] * 2))
    write_stack(tmp_path / "b.mrcs", np.stack([spot(48, 16 / 3, -8 / 3, 2)]))
    (tmp_path / "mixed.star").write_text(
        "data_optics\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n_rlnImageSize #3\n1 4.0 32\n2 3.0 48\n\n"
        "data_particles\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n1@a.mrcs 1\n1@b.mrcs 2\n2@a.mrcs 1\n\n"
    )
    data, settings, info = one_layer(tmp_path / "mixed.star")
    assert data.shape == (3, 32, 32) and settings["scale"] == (1, 4, 4) and info["resampled"]
    np.testing.assert_array_equal(data[0], spot(32, 4, -2))
    for image in data:
        np.testing.assert_allclose(world_centroid(image, Grid(32, 4)), (16, -8), atol=0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data_particles\nloop_\n_rlnCoordinateX #1\n1\n2\n\n", "no block of particles"),
        ("data_\nloop_\n_rlnImageName #1\nno_number.mrcs\n\n", "no_number.mrcs not found"),
        ("data_\nloop_\n_rlnImageName #1\n1@missing.mrcs\n\n", "missing.mrcs not found"),
        ("not a star file", "a STAR file starts with data_"),
    ],
)
def test_a_broken_star_file_says_what_is_wrong_in_one_line(tmp_path, text, message):
    (tmp_path / "broken.star").write_text(text)
    with pytest.raises(ParticleFileError, match=message) as caught:
        read(tmp_path / "broken.star")
    assert "\n" not in str(caught.value) and "broken.star" in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- runs


def layers_of(run):
    return {settings["name"]: (data, settings) for data, settings, _ in read(run)}


def test_run_layers_and_their_pixels(trained_run):
    layers = layers_of(trained_run)
    assert list(layers) == ["particles", "reconstruction", "aligned"]
    _, latents, stack = read_run(trained_run)
    raw = stack.images(slice(None))
    np.testing.assert_array_equal(np.asarray(layers["particles"][0]), raw)
    pose = latents.pose.scaled(latents.pixel_size_A / 4.0)
    for row in (0, 31, 59):
        np.testing.assert_array_equal(layers["aligned"][0][row], alignment.align(raw[[row]], pose[[row]])[0])
    assert {data.shape[0] for data, _ in layers.values()} == {60}
    for name, (_, settings) in layers.items():
        info = settings["metadata"]["emsvae"]
        assert info["kind"] == name and info["run"] == str(trained_run)
        assert info["names"].tolist() == latents.names.tolist()


def test_reconstruction_is_what_the_model_draws(trained_run):
    from emspatialvae.analysis.report.run_figures import canonical
    from emspatialvae.inference.infer import load_model

    data, settings = layers_of(trained_run)["reconstruction"]
    run, latents, _ = read_run(trained_run)
    assert data.shape == (60, 24, 24)
    np.testing.assert_allclose(data[20], canonical(load_model(run), latents.z[[20]])[0], atol=1e-6)
    low, high = settings["contrast_limits"]
    assert low < high


def test_a_particle_that_the_run_could_not_use(trained_run):
    layers = layers_of(trained_run)
    assert not read_run(trained_run)[1].used[CONSTANT]
    np.testing.assert_array_equal(layers["aligned"][0][CONSTANT], layers["particles"][0][CONSTANT])
    assert not layers["reconstruction"][0][CONSTANT].any()


def test_layers_of_a_run_cover_the_same_field_with_the_same_centre(trained_run):
    for data, settings in layers_of(trained_run).values():
        box, scale, translate = data.shape[-1], np.array(settings["scale"]), np.array(settings["translate"])
        np.testing.assert_allclose(scale[1:] * box, 32 * 4.0)
        np.testing.assert_allclose(translate + scale * [0, box // 2, box // 2], 0)
        assert scale[0] == 1


@pytest.mark.parametrize(("box", "prepared_box"), [(32, 24), (33, 24), (32, 25), (33, 25)])
def test_one_spot_lies_at_one_world_coordinate_in_every_frame(tmp_path, box, prepared_box):
    """The spot sits in the object at (20, -12) A and is recorded turned by 1 rad and shifted; the run's pose takes both out."""
    pixel_size_A, at = 4.0, np.array([20.0, -12.0])
    pose = Pose2D(np.array([1.0]), np.array([[3.0, -2.0]]))
    turn = np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])
    x, y = turn @ at / pixel_size_A + pose.shift_px[0]
    stack = load_particles(InputConfig(write_stack(tmp_path / "spot.mrcs", spot(box, x, y)[None], pixel_size_A)))
    grid, prepared = Grid.of(stack), Grid(prepared_box, box * pixel_size_A / prepared_box)
    none = np.zeros((1, 2))
    latents = Latents(
        names=stack.names,
        used=np.array([True]),
        z=none,
        z_sd=none,
        pose=pose.scaled(pixel_size_A / prepared.pixel_size_A),
        theta_sd_rad=none[:, 0],
        shift_sd_px=none,
        log_likelihood=none[:, 0],
        pixel_size_A=prepared.pixel_size_A,
    )
    recorded = np.array([x, y]) * pixel_size_A
    np.testing.assert_allclose(world_centroid(raw_images(stack, grid)[0], grid), recorded, atol=0.1)
    aligned = aligned_images(stack, latents, grid)[0]
    np.testing.assert_allclose(world_centroid(aligned, grid), at, atol=0.1)
    # What the model sees and draws lies on the prepared grid.
    small = resampling.fourier_crop(aligned[None], prepared_box)[0]
    np.testing.assert_allclose(world_centroid(small, prepared), at, atol=0.3)


def test_an_unfinished_run_says_so(trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "run" / "latents.csv").unlink()
    with pytest.raises(RunFolderError, match="no results yet"):
        read(tmp_path / "run")


def test_a_run_of_a_newer_version_says_so(trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(RunFolderError, match="format 99"):
        read(tmp_path / "run")


def test_without_a_checkpoint_the_images_are_still_shown(trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    with pytest.warns(UserWarning, match=r"no reconstruction layer: .*checkpoint\.pt"):
        layers = layers_of(tmp_path / "run")
    assert list(layers) == ["particles", "aligned"]


# ------------------------------------------------------------------------------------------------------- real files

OPENED = {
    "real/empiar_10076_7.star": (7, 320),
    "real/empiar_10076_7.cs": (7, 320),
    "real/relion31.star": (5, 256),
    "real/relion31.v2.star": (5, 256),
    "real/relion31.mrcs": (5, 256),
    "real/sample.mrcs": (17, 200),
    "real/toy_projections_13.star": (13, 30),
    "relion_truth/rln_proj_65_shifted.star": (4, 65),
}


@pytest.mark.real
@pytest.mark.parametrize("name", OPENED)
def test_real_files_open(real_data, name):
    n, box = OPENED[name]
    images, _, note = one_layer(real_data / name)
    assert images.shape == (n, box, box) and len(note["names"]) == n
    assert np.isfinite(images[0]).all() and images[n - 1].std() > 0


@pytest.mark.real
@pytest.mark.parametrize("name", ["real/relion5.star", "cryosparc/cryosparc_J2_particles_exported.cs"])
def test_real_files_without_their_images_say_where_they_were_looked_for(real_data, name):
    with pytest.raises(ParticleFileError, match=r"stack .* not found; tried .*--project-dir"):
        read(real_data / name)

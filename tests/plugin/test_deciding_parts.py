"""What the page "Deciding in napari" promises, as far as it needs no window."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("napari")

from emspatialvae.analysis.latent_space.paths import through_data
from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.imaging import alignment
from emspatialvae.preprocess.preparation import Portion
from napari_emsvae.explorer.pictures.film import averages_beside, film_along, rolling_averages, save_film
from napari_emsvae.explorer.pictures.mosaic import Mosaic
from napari_emsvae.explorer.pictures.particle_images import MEANT, described, pictures_of
from napari_emsvae.explorer.pictures.sample import FEW, Sample
from napari_emsvae.explorer.pictures.upright import grey, upright
from napari_emsvae.explorer.prepared_images import PreparedOnDemand
from napari_emsvae.explorer.run_data import RunData
from napari_emsvae.explorer.scatter.colouring import Colouring, places_of_names
from napari_emsvae.explorer.scatter.raster import Window
from napari_emsvae.explorer.tabs.classes import ORDERS, arranged, by_similarity
from napari_emsvae.explorer.tabs.select import excluded_beside
from napari_emsvae.qt import palette
from napari_emsvae.qt.dialogs import completed
from napari_emsvae.qt.messages import in_the_window
from napari_emsvae.reader import get_reader

CONSTANT, PARTICLES, BOX = 7, 60, 24


@pytest.fixture(scope="module")
def data(trained_run):
    return RunData.open(trained_run)


@pytest.fixture
def travelled(trained_run, tmp_path):
    """A run whose stack is not where it was, with its cache."""
    run = shutil.copytree(trained_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["config"]["input"]["particles"] = str(tmp_path / "gone" / "particles.star")
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.fixture(scope="module")
def classified(trained_run, tmp_path_factory):
    """The run with four classes: k-means leaves none empty, even of so few particles."""
    from emspatialvae.workflows.classes import classify_run

    run = shutil.copytree(trained_run, tmp_path_factory.mktemp("classified") / "run")
    classify_run(run, 4, method="kmeans", say=lambda _: None)
    return RunData.open(run)


# -------------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("run is damaged; run `emsvae train ... --resume` to write it again", "go on with the run in the Train form"),
        ("a.star now has 3 particles, the run has 4; train anew with --force", "train on it again, in the Train form"),
        ("--where 'x > 1': no such column", "the condition 'x > 1'"),
        ("smaller than the particle; use --box", "\N{LEFT DOUBLE QUOTATION MARK}box\N{RIGHT DOUBLE QUOTATION MARK}"),
        ("not found; --project-dir says where", "Locate stack"),
    ],
)
def test_messages_of_the_window_name_no_flags(told, said):
    assert said in in_the_window(told) and "--" not in in_the_window(told)


def test_a_file_name_of_the_users_is_no_flag():
    assert in_the_window("a--b.star is missing") == "a--b.star is missing"


def test_what_stands_beside_a_number_has_an_explanation(data):
    named = {what for what, _ in described(data, int(data.used[3]))}
    assert {"theta", "shift x, y", "pose probability", "misfit", "log-likelihood"} <= named & set(MEANT)
    assert "nats" in MEANT["log-likelihood"]


@pytest.mark.parametrize(
    "content", ['{"format": 2, "emspatialvae": "0.1', '{"format": 2, "emspatialvae": "0", "config": null}']
)
def test_a_damaged_config_is_one_line_and_still_ours(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert get_reader(str(tmp_path)) is not None
    with pytest.raises(RunFolderError, match="is damaged") as found:
        RunData.open(tmp_path)
    assert len(str(found.value).splitlines()) == 1


# ----------------------------------------------------------------------------------------------------------------- files


def test_names_are_completed_and_the_other_half_is_named(tmp_path):
    known = (".star", ".cs")
    assert completed(tmp_path / "kept", ".star", known).name == "kept.star"
    assert completed(tmp_path / "kept.v1.2", ".cs", known).name == "kept.v1.2.cs"
    assert completed(tmp_path / "kept.cs", ".star", known).name == "kept.cs"
    assert completed(tmp_path / "kept.txt", ".star", known).name == "kept.txt"  # meant, and refused with a reason
    assert excluded_beside(tmp_path / "k2_kept.star").name == "k2_excluded.star"


def test_a_film_replaces_neither_of_its_files_unasked(data, tmp_path):
    film = film_along(data, data.latents.z[data.used[:3]], ("a", "b"))
    beside = averages_beside(tmp_path / "fm.mrcs")
    beside.write_text("mine")
    with pytest.raises(EmsvaeError, match=r"fm_particles\.mrcs exists"):
        save_film(film, tmp_path / "fm.mrcs")
    assert beside.read_text() == "mine" and not (tmp_path / "fm.mrcs").exists()


# ----------------------------------------------------------------------------------------------------- runs that travel


def test_a_run_opens_without_its_stack(travelled, data):
    there = RunData.open(travelled)
    assert not there.has_stack and there.unit == "angstrom"
    rows = there.used[:5]
    assert not isinstance(there.images, PreparedOnDemand)
    np.testing.assert_array_equal(there.images.portion(rows).images, data.images.portion(rows).images)
    names = [picture.name for picture in pictures_of(there, int(rows[0]), 20.0)]
    assert names[:2] == ["aligned", "reconstruction"]
    shutil.rmtree(travelled / "cache")
    with pytest.raises(EmsvaeError, match="gone"):
        _ = RunData.open(travelled).images


def test_another_runs_cache_is_not_taken(travelled):
    for file in (travelled / "cache").glob("images_*.npy"):
        np.save(file, np.load(file)[:-1])
    with pytest.raises(EmsvaeError, match="gone"):
        _ = RunData.open(travelled).images


def test_the_stack_is_located_and_remembered(travelled, simulated, tmp_path):
    config = json.loads((travelled / "config.json").read_text())
    moved = shutil.copytree(simulated, tmp_path / "moved")
    # The STAR file is there, its stack is not: it lies under the project's folder now.
    (tmp_path / "here").mkdir()
    shutil.copy(simulated / "particles.star", tmp_path / "here" / "particles.star")
    config["config"]["input"]["particles"] = str(tmp_path / "here" / "particles.star")
    (travelled / "config.json").write_text(json.dumps(config))
    data = RunData.open(travelled)
    assert not data.has_stack
    with pytest.raises(EmsvaeError):
        data.locate_stack(tmp_path / "here")
    data.locate_stack(moved)
    assert data.has_stack and data.stack.images([0]).shape == (1, 32, 32)
    assert RunData.open(travelled).has_stack


def test_a_umap_is_made_once(trained_run, tmp_path, monkeypatch):
    made = []

    def plane(z):
        made.append(len(z))
        return z[:, :2]

    monkeypatch.setattr("emspatialvae.analysis.latent_space.embedding.umap_plane", plane)
    run = shutil.copytree(trained_run, tmp_path / "run")
    first, again = RunData.open(run).axes.umap, RunData.open(run).axes.umap
    np.testing.assert_allclose(first, again, atol=1e-6)
    assert made == [PARTICLES - 1]
    (run / "umap.npz").write_bytes(b"cut short")
    np.testing.assert_allclose(RunData.open(run).axes.umap, first, atol=1e-6)
    assert len(made) == 2


# ------------------------------------------------------------------------------------------------- colours and columns


def test_images_in_colour_are_averaged_over_their_channels(data, monkeypatch):
    rows, rng = data.used[:3], np.random.default_rng(0)
    colour = rng.normal(size=(3, 3, BOX, BOX)).astype(np.float32)
    portion = Portion(rows, colour, np.ones(3, bool), np.zeros(3, np.int32))
    monkeypatch.setattr(type(data.images), "portion", lambda self, some: portion)
    aligned, _ = upright(data, rows)
    np.testing.assert_allclose(aligned, alignment.align(colour.mean(1), data.latents.pose[rows]), atol=1e-5)
    assert grey(colour).shape == (3, BOX, BOX)
    assert rolling_averages(data, np.array([rows])).shape == (1, BOX, BOX)


def test_axes_are_columns_of_numbers(data):
    assert "rlnImageName" in data.columns.names and "rlnImageName" not in data.columns.numbers
    assert {"emsvaeZ1", "rlnAnglePsi"} <= set(data.columns.numbers)


def test_a_run_on_a_cs_file_lists_its_micrographs(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    fields = [("uid", "u8"), ("location/micrograph_path", "S20"), ("ctf/df1_A", "f4")]
    rows = np.zeros(PARTICLES, dtype=fields)
    rows["uid"], rows["location/micrograph_path"][:30] = np.arange(PARTICLES), b"a.mrc"
    with (run / "particles.cs").open("wb") as stream:
        np.save(stream, rows)
    data = RunData.open(run)
    assert "location/micrograph_path" in data.columns.names
    assert "ctf/df1_A" in data.columns.numbers and "location/micrograph_path" not in data.columns.numbers
    assert (data.columns.read("location/micrograph_path") == "a.mrc").sum() == 30


def test_names_in_the_scatter_do_not_lie_on_each_other():
    rng = np.random.default_rng(0)
    points, codes = rng.normal(size=(4000, 2)), rng.integers(0, 30, 4000)
    shown = places_of_names(points, Colouring("x", codes.astype(float), tuple(map(str, range(30)))))
    span = np.array(Window.around(points).size)
    places = np.array([(x, y) for _, x, y in shown]) / span
    for k, one in enumerate(places):
        for other in places[k + 1 :]:
            assert (np.abs(one - other) > 0.04).any()
    many = Colouring("micrograph", codes.astype(float), tuple(map(str, range(300))))
    assert places_of_names(points, many) == []


@pytest.mark.parametrize("theme", [palette.DARK, palette.LIGHT])
def test_texts_and_marks_stand_out(theme):
    from matplotlib.colors import to_rgb

    def luminance(colour):
        rgb = np.array(to_rgb(colour))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    def contrast(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    assert contrast(theme.text, theme.background) > 7  # WCAG AAA
    assert contrast(theme.faint, theme.background) > 4.5
    assert min(contrast(colour, theme.background) for colour in theme.distinct) > 3


# ------------------------------------------------------------------------------------------- selection, model and paths


def test_averages_from_the_sample_are_those_of_its_members(data):
    (sample,) = [found for found in Sample.gather(data) if found is not None]
    assert sorted(sample.rows) == data.used.tolist()
    mask = np.zeros(PARTICLES, bool)
    mask[data.used[:40]] = True
    found = sample.contrast(mask)
    aligned, _ = upright(data, data.used)
    np.testing.assert_allclose(found.inside, aligned[:40].mean(0), atol=1e-5)
    np.testing.assert_allclose(found.outside, aligned[40:].mean(0), atol=1e-5)
    np.testing.assert_allclose(found.difference, found.inside - found.outside)
    assert found.described() == "all 40 particles"
    few = sample.contrast(np.arange(PARTICLES) < 5)
    assert few.count < FEW and "few particles here" in few.described()
    assert sample.contrast(np.zeros(PARTICLES, bool)) is None
    assert sample.about(int(data.used[0]), 10).averaged == 10


def test_components_and_contents_are_the_same_places(data):
    z = data.latents.z[data.used[4]]
    np.testing.assert_allclose(data.axes.from_components(data.axes.to_components(z)), z)
    np.testing.assert_allclose(data.axes.to_components(z), data.axes.components[4])
    assert data.axes.component_share.sum() == pytest.approx(1)


def test_places_without_particles_are_told(data):
    assert data.neighbours.count(data.latents.z[data.used].mean(0)) > 10
    assert data.neighbours.count(np.full(data.z_dim, 50.0)) == 0


def test_a_path_through_the_data_goes_round_a_gap():
    angle = np.random.default_rng(0).uniform(0, np.pi, 2000)
    arc = np.stack([np.cos(angle), np.sin(angle)], 1) + np.random.default_rng(1).normal(0, 0.02, (2000, 2))
    start, end = int(angle.argmin()), int(angle.argmax())
    path = through_data(arc, start, end, 30)
    np.testing.assert_allclose(path[[0, -1]], arc[[start, end]])
    assert np.abs(np.linalg.norm(path, axis=1) - 1).max() < 0.1
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert steps.max() < 1.5 * steps.min()
    # Two clouds far apart: there is no way but across, and it is found.
    clouds = np.concatenate([arc, arc + 100])
    assert through_data(clouds, start, 2000 + end, 5, neighbours=4).shape == (5, 2)


# --------------------------------------------------------------------------------------------------------------- gallery


@pytest.mark.parametrize("order", ORDERS)
def test_the_gallery_holds_every_class_with_its_members(classified, order):
    gallery = arranged(classified, order)
    assert sorted(gallery.order.tolist()) == list(range(4)) and gallery.mosaic.count == 4
    members = np.sort(np.concatenate(gallery.members))
    assert members.tolist() == classified.used.tolist()
    for tile, at in enumerate(gallery.order):
        assert len(gallery.members[tile]) == gallery.classes.particles[at]
        assert f"class {gallery.classes.numbers[at]}: {gallery.classes.particles[at]:,} particles" in gallery.words(
            tile
        )
    if order == "size":
        assert np.all(np.diff(gallery.classes.particles[gallery.order]) <= 0)


def test_neighbours_by_similarity_look_alike():
    angle = np.random.default_rng(0).permutation(12)
    x = np.linspace(-1, 1, 24)
    images = np.stack([np.exp(-((x - k / 6 + 1) ** 2) * 20)[None, :] * np.ones((24, 1)) for k in angle])
    found = angle[by_similarity(images.astype(np.float32))]
    assert np.abs(np.diff(found)).max() <= 2


def test_large_averages_become_small_tiles(classified, monkeypatch):
    monkeypatch.setattr("napari_emsvae.explorer.tabs.classes.LARGEST_TILE_PX", 16)
    gallery = arranged(classified, "size")
    assert gallery.mosaic.box == 16 and gallery.mosaic.gap == 3
    assert gallery.pixel_size_A * 16 == pytest.approx(
        classified.classes.pixel_size_A * classified.classes.images.shape[-1]
    )


def test_gaps_belong_to_the_tile_before_them():
    mosaic = Mosaic.of(np.ones((4, 8, 8), np.float32), 2, 3)
    assert mosaic.corner(3) == (11, 11) and mosaic.image.shape == (19, 19)
    assert mosaic.at(12, 12) == 3 and mosaic.at(2, 2) == 0

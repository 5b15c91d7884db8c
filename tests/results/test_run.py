"""The run folder: made whole or not at all, never in the place of something else, read back as written."""

import json
from pathlib import Path

import pytest
import torch

from emspatialvae.config import InputConfig, ModelConfig, PrepareConfig, RunConfig, TrainConfig
from emspatialvae.errors import EmsvaeError, OutputExistsError, RunFolderError
from emspatialvae.model.image_spec import ImageSpec
from emspatialvae.preprocess.preparation import Preparation
from emspatialvae.results.manifest import FORMAT, Manifest
from emspatialvae.results.run_folder import RunDir, default_out

MANIFEST = Manifest(
    config=RunConfig(
        InputConfig(Path("/data/particles.star"), Path("/data"), pixel_size_A=1.25, limit=7),
        PrepareConfig(box=32, particle_diameter_A=150.0, cache=Path("/scratch")),
        ModelConfig(z_dim=3, noise="fitted", residual=True, max_shift_A=20.0),
        TrainConfig(epochs=5, learning_rate=1e-4, seed=3),
        poses="keep",
    ),
    preparation=Preparation(32, 4.9, 15.3, True, "phase-flip", 6.0, True),
    images=ImageSpec(32, 15.3, shift_prior_px=2.0, max_shift_px=float("inf")),
    n_particles=7,
    assumed=("pixel size 1.25 A", "mask: \N{LATIN CAPITAL LETTER A WITH RING ABOVE}"),
)
DEFAULTS = Manifest(RunConfig(InputConfig(Path("p.star"))), MANIFEST.preparation, MANIFEST.images, 1, ())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("manifest", [MANIFEST, DEFAULTS])
def test_manifest_round_trip(tmp_path, manifest):
    made = RunDir.create(tmp_path / "run", manifest)
    assert made.path == tmp_path / "run"
    assert made.manifest == RunDir(tmp_path / "run").manifest == manifest


@pytest.mark.parametrize(("manifest", "asked"), [(MANIFEST, 3), (DEFAULTS, None)])
def test_the_number_of_latents_is_that_of_the_results_and_the_setting_stays(tmp_path, manifest, asked):
    made = RunDir.create(tmp_path / "run", manifest)
    assert made.manifest.z_dim == asked
    for found in (1, 2):  # interrupted with one coordinate, gone on with
        made.record_z_dim(found)
        assert made.manifest.z_dim == found
        assert made.manifest.config.model.z_dim == asked


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", 5000, [1]])
def test_a_number_of_latents_that_cannot_be(tmp_path, value):
    made = RunDir.create(tmp_path / "run", DEFAULTS)
    content = json.loads((made.path / "config.json").read_text())
    (made.path / "config.json").write_text(json.dumps(content | {"results_z_dim": value}))
    with pytest.raises(RunFolderError, match="results_z_dim is"):
        made.check()


def test_config_is_plain_json_with_format_and_version(tmp_path):
    content = json.loads((RunDir.create(tmp_path / "run", MANIFEST).path / "config.json").read_text())
    assert content["format"] == FORMAT and content["emspatialvae"]
    assert content["config"]["model"]["z_dim"] == 3 and content["config"]["prepare"]["cache"] == "/scratch"


def test_create_makes_parents_and_takes_empty_folders(tmp_path):
    RunDir.create(tmp_path / "a" / "b" / "run", MANIFEST)
    (tmp_path / "empty").mkdir()
    before = (tmp_path / "empty").stat().st_ino
    RunDir.create(tmp_path / "empty", MANIFEST)
    assert (tmp_path / "empty").stat().st_ino == before, "an empty folder may be a mount point"
    assert names(tmp_path) == ["a", "empty"]


def test_create_takes_no_place_that_is_taken(tmp_path):
    RunDir.create(tmp_path / "run", MANIFEST)
    (tmp_path / "file").write_text("x")
    for name in ("run", "file"):
        with pytest.raises(OutputExistsError):
            RunDir.create(tmp_path / name, MANIFEST)


def test_force_replaces_a_run_with_all_that_is_in_it(tmp_path):
    old = RunDir.create(tmp_path / "run", MANIFEST)
    old.append_metrics({"epoch": 1})
    new = RunDir.create(tmp_path / "run", DEFAULTS, force=True)
    assert new.manifest == DEFAULTS and new.metrics() == []
    assert names(tmp_path) == ["run"]


def test_force_replaces_a_run_whose_config_is_cut_short(tmp_path):
    config = RunDir.create(tmp_path / "run", MANIFEST).path / "config.json"
    config.write_text(config.read_text()[:200])
    assert RunDir.create(tmp_path / "run", DEFAULTS, force=True).manifest == DEFAULTS


@pytest.mark.parametrize("config", [None, "{}", '{"format": 1}'])
def test_force_removes_nothing_but_runs(tmp_path, config):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.txt").write_text("x")
    if config is not None:
        (tmp_path / "mine" / "config.json").write_text(config)
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(RunFolderError, match="not a run folder"):
            RunDir.create(tmp_path / name, MANIFEST, force=True)
    assert (tmp_path / "mine" / "data.txt").read_text() == "x"


@pytest.mark.parametrize("before", ["nothing", "empty", "run"])
def test_a_start_that_fails_changes_nothing(tmp_path, before):
    path = tmp_path / "run"
    if before == "empty":
        path.mkdir()
    if before == "run":
        RunDir.create(path, DEFAULTS)
    with pytest.raises(EmsvaeError, match="no good"), RunDir.creating(path, MANIFEST, force=True) as run:
        run.log("started")
        raise EmsvaeError("no good")
    assert names(tmp_path) == ([] if before == "nothing" else ["run"])
    if before == "empty":
        assert names(path) == []
    if before == "run":
        assert RunDir(path).manifest == DEFAULTS


def test_opening_what_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(RunFolderError, match="not a run folder"):
            RunDir(path)


def test_log_has_a_line_per_message(tmp_path):
    run = RunDir.create(tmp_path / "run", MANIFEST)
    run.log("one")
    run.log("two")
    first, second = (run.path / "run.log").read_text().splitlines()
    assert first.endswith("  one") and second.endswith("  two")


def test_metrics_round_trip_and_truncation(tmp_path):
    run = RunDir.create(tmp_path / "run", MANIFEST)
    assert run.metrics() == []
    run.forget_metrics_after(3)
    for epoch in range(1, 5):
        run.append_metrics({"epoch": epoch, "train_elbo": -10.0 / epoch, "test_elbo": ""})
    text = (run.path / "metrics.csv").read_text()
    rows = run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["train_elbo"] == -10.0 / 3 and rows[0]["test_elbo"] != rows[0]["test_elbo"]
    run.forget_metrics_after(2)
    assert [row["epoch"] for row in run.metrics()] == [1, 2]
    for epoch in (3, 4):
        run.append_metrics({"epoch": epoch, "train_elbo": -10.0 / epoch, "test_elbo": ""})
    assert (run.path / "metrics.csv").read_text() == text
    run.forget_metrics_after(0)
    assert run.metrics() == []


def test_checkpoint_round_trip_without_pickled_objects(tmp_path):
    run = RunDir.create(tmp_path / "run", MANIFEST)
    weights = torch.arange(6.0).reshape(2, 3)
    run.save_checkpoint({"model": {"weight": weights}, "progress": {"epoch": 2, "stopped": ""}})
    run.save_checkpoint({"model": {"weight": 2 * weights}, "progress": {"epoch": 3, "stopped": ""}})
    for state in (run.load_checkpoint(), torch.load(run.path / "checkpoint.pt", weights_only=True)):
        torch.testing.assert_close(state["model"]["weight"], 2 * weights)
        assert state["progress"] == {"epoch": 3, "stopped": ""} and state["format"] == FORMAT
    assert names(run.path) == ["checkpoint.pt", "config.json"]


def test_checkpoint_of_a_real_run_loads_with_weights_only(tiny_run):
    state = torch.load(tiny_run / "checkpoint.pt", weights_only=True)
    assert {"model", "optimiser", "generator", "progress"} <= state.keys()


def test_checkpoint_that_is_none(tmp_path):
    run = RunDir.create(tmp_path / "run", MANIFEST)
    with pytest.raises(RunFolderError, match=r"no checkpoint\.pt"):
        run.load_checkpoint()
    torch.save({"model": Path("x")}, run.path / "checkpoint.pt")
    with pytest.raises(RunFolderError, match="damaged"):
        run.load_checkpoint()


def test_default_out():
    assert default_out(Path("/data/job/particles.star")) == Path("particles_emsvae")
    assert default_out(Path("a.b.mrcs")) == Path("a.b_emsvae")


def test_the_log_takes_names_that_are_no_utf_8(tmp_path):
    """A name of a particle in a sentence must not end a run; its bytes are written as they came."""
    (tmp_path / "config.json").write_text("{}")
    RunDir(tmp_path).log("the first is 000001@d\udce9/s.mrcs")
    assert (tmp_path / "run.log").read_bytes().endswith(b"the first is 000001@d\xe9/s.mrcs\n")

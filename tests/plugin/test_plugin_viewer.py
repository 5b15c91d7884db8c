"""The plugin inside napari: opening, the slider, errors."""

import numpy as np
import pytest

pytest.importorskip("napari")

LAYERS = ["particles", "reconstruction", "aligned"]


def test_napari_finds_the_reader_by_itself(model, simulated):
    (layer,) = model.open(str(simulated / "particles.star"), plugin=None)
    assert layer.name == "particles"
    assert [str(unit) for unit in layer.units] == ["pixel", "angstrom", "angstrom"]
    assert model.dims.range[0][:2] == (0, 59)


def test_layers_of_a_run_share_the_slider_and_lie_on_each_other(model, trained_run):
    layers = model.open(str(trained_run), plugin="emspatialvae")
    assert [layer.name for layer in model.layers] == LAYERS
    assert model.dims.nsteps[0] == 60 and model.dims.axis_labels == ("particle", "y", "x")
    for layer in layers:
        assert layer.visible
        np.testing.assert_allclose(layer.world_to_data((13, 0, 0)), (13, *[layer.data.shape[-1] // 2] * 2))


def test_a_broken_file_is_an_error_message_not_a_crash(model, tmp_path):
    (tmp_path / "broken.star").write_text("data_particles\nloop_\n_rlnCoordinateX #1\n1\n2\n\n")
    with pytest.raises(Exception, match=r"ParticleFileError: .*broken\.star: no block of particles"):
        model.open(str(tmp_path / "broken.star"), plugin=None)
    assert not model.layers


def test_a_run_in_the_viewer(viewer, trained_run, monkeypatch):
    monkeypatch.setattr("napari_emsvae.reader.show_explorer", lambda: None)  # which puts its own pictures there
    viewer.open(str(trained_run), plugin="emspatialvae")
    assert [layer.name for layer in viewer.layers] == LAYERS
    shots = []
    for row in (0, 13, 59):
        viewer.dims.set_current_step(0, row)
        shots.append(viewer.screenshot(canvas_only=True, flash=False))
        for name in LAYERS:
            layer = viewer.layers[name]
            centre = layer.data.shape[-1] // 2
            assert layer.get_value((row, 0, 0), world=True) == pytest.approx(layer.data[row, centre, centre])
    assert shots[0][..., :3].std() > 5
    assert not np.array_equal(shots[0], shots[1]) and not np.array_equal(shots[1], shots[2])


def test_a_stack_in_the_viewer_in_3d(viewer, simulated):
    viewer.open(str(simulated / "particles.mrcs"), plugin="emspatialvae")
    viewer.dims.ndisplay = 3
    viewer.dims.ndisplay = 2
    viewer.dims.set_current_step(0, 5)
    assert viewer.layers[0].get_value((5, 0, 0), world=True) == pytest.approx(viewer.layers[0].data[5, 16, 16])

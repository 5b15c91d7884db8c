"""What `import emspatialvae as ev` offers: examples that run, no heavy imports before they are needed, errors that help."""

import doctest
import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import emspatialvae as ev

ROOT = Path(__file__).parents[1]
WITH_EXAMPLES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in (ROOT / "emspatialvae").rglob("*.py")
    if re.search(r"^\s*>>> ", file.read_text(), re.M)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A simulated stack, its truth and a run on it."""
    folder = tmp_path_factory.mktemp("api")
    star = ev.simulate("hinge", out=folder / "sim", particles=60, box=24, snr=1.0)
    run = ev.train(star, out=folder / "run", epochs=2, z_dim=1, hidden=16, encoder_hidden=16)
    return {"folder": folder, "trained": run.folder, "truth": folder / "sim" / "truth.star"}


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_run(module, made):
    names = {**vars(importlib.import_module(module)), **made}
    failed, tried = doctest.testmod(importlib.import_module(module), extraglobs=names)
    assert tried and not failed


def test_every_public_function_has_an_example():
    assert "emspatialvae.api" in WITH_EXAMPLES
    for name in set(ev.__all__) - {"EmsvaeError"}:
        assert ">>>" in getattr(ev, name).__doc__, name


def test_import_is_light():
    heavy = ["torch", "pandas", "scipy", "sklearn", "matplotlib", "starfile", "mrcfile", "tyro"]
    code = f"import emspatialvae as ev, sys; ev.__all__; dir(ev); print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = ev.trian


def test_a_run_gives_what_its_folder_holds(made):
    run = ev.read_run(made["trained"])
    assert repr(run) == f"Run({str(made['trained'])!r})"
    table = run.latents.to_pandas()
    pd.testing.assert_frame_equal(
        table[["z1", "theta_rad"]], pd.read_csv(run.folder / "latents.csv")[["z1", "theta_rad"]]
    )
    assert len(run.particles) == 60 and run.particles.images([5]).shape == (1, 24, 24)
    assert run.config.model.z_dim == 1
    assert list(run.metrics["epoch"]) == [1, 2] and run.metrics["train_elbo"].notna().all()
    assert run.classes is None
    z = run.latents.z[:3]
    assert np.array_equal(run.decode(z), run.decode(z.tolist()))
    with pytest.raises(ev.EmsvaeError, match=r"shape \[3\].*needs \[n, 1\]"):
        run.decode([1.0, 2.0, 3.0])


def test_inferring_its_own_particles_gives_its_own_results_and_writes_nothing(made):
    run = ev.read_run(made["trained"])
    before = sorted(path.stat().st_mtime_ns for path in made["folder"].rglob("*"))
    again = run.infer(made["folder"] / "sim" / "particles.star")
    assert sorted(path.stat().st_mtime_ns for path in made["folder"].rglob("*")) == before
    np.testing.assert_allclose(again.z, run.latents.z, atol=2e-3)  # the run looked at its cache, in half precision
    np.testing.assert_allclose(again.pose.shift_px, run.latents.pose.shift_px, atol=2e-2)


def test_export_select_and_classify(made, tmp_path):
    run = ev.read_run(made["trained"])
    run.export(star=tmp_path / "out.star", csv=tmp_path / "out.csv")
    assert (tmp_path / "out.star").exists() and len(pd.read_csv(tmp_path / "out.csv")) == 60
    kept = run.select("z1 > 0", out=tmp_path / "good.star", excluded=tmp_path / "rest.star")
    n = len(ev.load_particles(kept, project_dir=made["folder"] / "sim"))
    assert n == int((run.latents.z[:, 0] > 0).sum())
    with pytest.raises(ev.EmsvaeError, match="nothing to export"):
        run.export()
    assert run.latents.class_number is None
    classes = run.classify(3)
    assert classes.particles.sum() == 60 and run.classes is not None
    assert run.latents.class_number is not None and run.latents.class_number.max() == 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda sim: ev.train(sim, epoch=3), r"no setting 'epoch'; the nearest one is 'epochs'"),
        (
            lambda sim: ev.simulate("hinge", out=sim.parent / "x", snrr=1),
            r"no setting 'snrr'; the nearest one is 'snr'",
        ),
        (lambda sim: ev.load_particles(sim, pixelsize=1), r"no setting 'pixelsize'; the nearest one is 'pixel_size_A'"),
        (lambda sim: ev.read_run(sim.parent), "not a run folder"),
    ],
)
def test_what_is_refused(made, call, said):
    with pytest.raises(ev.EmsvaeError, match=said):
        call(made["folder"] / "sim" / "particles.star")


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = ROOT / "examples" / "api.py"
    code = [
        line
        for line in example.read_text().split('"""', 2)[2].splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    assert len(code) < 25
    runpy.run_path(str(example), run_name="__main__")
    assert (tmp_path / "hinge" / "good.star").exists() and (tmp_path / "hinge" / "manifold.png").stat().st_size > 1000

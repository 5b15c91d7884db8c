"""cryoSPARC's .csg files: a name for one or two .cs files that lie beside them."""

from pathlib import Path

import numpy as np
import pytest

from emspatialvae.errors import ParticleFileError
from emspatialvae.io.cs import read_cs, write_cs
from emspatialvae.io.csg import read_csg
from emspatialvae.io.mrc import StackWriter

N = 40


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def group(**metafile_of: str) -> str:
    """What cryoSPARC writes, result -> its file."""
    results = "".join(
        f"  {result}:\n    metafile: {file}\n    num_items: {N}\n    type: particle.{result}\n"
        for result, file in metafile_of.items()
    )
    about = "  description: 'All particles: those that were selected'\n  name: particles\n  title: Particles\n  type: particle\n"
    return f"created: 2024-05-01 12:00:00.123456\ngroup:\n{about}results:\n{results}version: v4.5.1\n"


@pytest.fixture
def job(here) -> Path:
    """A job's folder: images in J7_particles.cs, poses in its passthrough, the .csg that names both, and the stack."""
    folder = here / "J7"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with StackWriter(folder / "s.mrcs", N, 24, 4.0) as stack:
        y, x = np.mgrid[-12:12, -12:12]
        stack.append(rng.normal(size=(N, 24, 24)) + 3 * np.exp(-((x / 2) ** 2) - (y / 4) ** 2))
    uid = rng.permutation(N).astype("u8") + 100
    images = np.zeros(N, [("uid", "u8"), ("blob/path", "S20"), ("blob/idx", "u4"), ("blob/psize_A", "f4")])
    images["uid"], images["blob/path"], images["blob/idx"], images["blob/psize_A"] = uid, b">J7/s.mrcs", np.arange(N), 4
    names = [
        ("uid", "u8"),
        ("alignments2D/pose", "f4"),
        ("alignments2D/shift", "f4", (2,)),
        ("alignments2D/psize_A", "f4"),
    ]
    poses = np.zeros(N, names)
    poses["uid"], poses["alignments2D/pose"], poses["alignments2D/psize_A"] = uid[::-1], np.arange(N)[::-1] / N, 4
    write_cs(folder / "J7_particles.cs", images)
    write_cs(folder / "J7_passthrough_particles.cs", poses)
    (folder / "p.csg").write_text(group(alignments2D="'>J7_passthrough_particles.cs'", blob="'>J7_particles.cs'"))
    return folder


def test_one_file_for_all_results(job):
    (job / "one.csg").write_text(group(blob=">J7_particles.cs", ctf='">J7_particles.cs"'))
    found = read_csg(job / "one.csg")
    assert (found.particles, found.passthrough) == (job / "J7_particles.cs", None)


def test_the_passthrough_is_told_by_its_name_and_joined(job, emsvae):
    found = read_csg(job / "p.csg")
    assert found.particles == job / "J7_particles.cs" and found.passthrough == job / "J7_passthrough_particles.cs"
    said = emsvae.done("info", job / "p.csg").out
    assert "J7_particles.cs: cryoSPARC particles" in said and "poses in the plane" in said


def test_training_resuming_inference_export_and_selection(job, emsvae, here):
    emsvae.done("train", job / "p.csg", "--out", "run", *emsvae.TINY, "--z-dim", "1")
    emsvae.done("train", job / "p.csg", "--out", "run", "--resume", "--epochs", "3")
    emsvae.done("infer", "run", job / "p.csg", "--out", "other.cs")
    emsvae.done("export", "run", "--cs", "out.cs")
    wanted = read_cs(job / "J7_particles.cs")["uid"]
    for written in ("other.cs", "out.cs"):
        np.testing.assert_array_equal(read_cs(Path(written))["uid"], wanted)
    emsvae.done("select", job / "p.csg", "--where", "blob/idx < 7", "--out", "some.cs")
    np.testing.assert_array_equal(read_cs(Path("some.cs"))["uid"], wanted[:7])
    # What the .csg names is an input: it is never written over.
    said = emsvae("select", job / "p.csg", "--where", "blob/idx < 7", "--out", job / "J7_particles.cs", "--force")
    assert said.code == 2
    np.testing.assert_array_equal(read_cs(job / "J7_particles.cs")["uid"], wanted)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names no .cs file"),
        ("data_particles\nloop_\n", "names no .cs file"),
        (group(blob="'>gone.cs'"), r"names 'gone\.cs', which is not at"),
        (group(blob=">a.cs", ctf=">b.cs", location=">c.cs"), "names 3 .cs files"),
        (group(blob="a\0b.cs"), "which is not at"),
    ],
)
def test_groups_that_cannot_be_followed(here, content, message):
    (here / "x.csg").write_text(content)
    with pytest.raises(ParticleFileError, match=message):
        read_csg(here / "x.csg")


def test_a_group_that_is_not_there(emsvae):
    assert "gone.csg: no such file" in emsvae.refused("info", "gone.csg")

"""Stacks that lie elsewhere than their file says: other roots, and copies in one flat folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.particles.load import load_particles
from tests.tools.particle_files import write_stack, write_star


def load(star, **options):
    return load_particles(InputConfig(star, **options))


@pytest.fixture
def project(tmp_path) -> Path:
    """A STAR file with absolute paths of a disk that is gone, and its stacks where they are now."""
    write_stack(tmp_path / "now" / "Extract" / "job1" / "a.mrcs")
    write_stack(tmp_path / "now" / "Extract" / "job1" / "b.mrcs", 6)
    (tmp_path / "home").mkdir()
    names = ["2@/gone/project/Extract/job1/a.mrcs", "5@/gone/project/Extract/job1/b.mrcs"]
    write_star(tmp_path / "home" / "p.star", names)
    return tmp_path


@pytest.mark.parametrize("prefix", ["/gone/project/", "/gone/project", "/gone/project/Extract"])
def test_a_prefix_is_left_out(project, prefix):
    root = project / "now" / ("Extract" if prefix.endswith("Extract") else "")
    stack = load(project / "home" / "p.star", strip_prefix=prefix, project_dir=root)
    assert [file.path.name for file in stack.files] == ["a.mrcs", "b.mrcs"]
    assert stack.files[0].path == project / "now" / "Extract" / "job1" / "a.mrcs"
    assert stack.names[0] == "2@/gone/project/Extract/job1/a.mrcs"  # as the file has it


def test_a_prefix_that_no_path_has_is_refused(project):
    write_star(project / "now" / "p.star", ["1@Extract/job1/a.mrcs"])
    with pytest.raises(ParticleFileError, match=r"no path in .* begins so, the first is Extract/job1/a.mrcs"):
        load(project / "now" / "p.star", strip_prefix="/other")


def test_stacks_copied_flat_are_found_by_their_names(project):
    scratch = project / "scratch"
    scratch.mkdir()
    for file in (project / "now").rglob("*.mrcs"):
        shutil.copy(file, scratch)
    stack = load(project / "home" / "p.star", project_dir=scratch)
    assert [file.path for file in stack.files] == [scratch / "a.mrcs", scratch / "b.mrcs"]
    with pytest.raises(ParticleFileError, match="--project-dir"):
        load(project / "home" / "p.star")


def test_two_stacks_of_one_name_are_not_taken_for_one(project):
    write_star(project / "home" / "p.star", ["1@Extract/job1/a.mrcs", "2@Extract/job2/a.mrcs"])
    write_stack(project / "scratch" / "a.mrcs")
    with pytest.raises(ParticleFileError, match="are two stacks"):
        load(project / "home" / "p.star", project_dir=project / "scratch")
    # Two spellings of one path are one stack.
    write_star(project / "home" / "p.star", ["1@Extract/job1/a.mrcs", "2@./Extract/job1/a.mrcs"])
    stack = load(project / "home" / "p.star", project_dir=project / "scratch")
    assert {file.path for file in stack.files} == {project / "scratch" / "a.mrcs"}
    np.testing.assert_array_equal(stack.index_of, [0, 1])


def test_the_command_line_knows_both(project, emsvae):
    words = ("info", project / "home" / "p.star", "--strip-prefix", "/gone/project", "--project-dir", project / "now")
    assert "read images of 24 px" in emsvae.done(*words).out

"""Results appear whole or not at all."""

import errno
import os
import stat

import pytest

from emspatialvae.errors import EmsvaeError, OutputExistsError
from emspatialvae.io.atomic import atomic_path


def test_a_result_appears_only_when_it_is_whole(tmp_path):
    destination = tmp_path / "deep" / "folder" / "out.mrcs"
    with atomic_path(destination, overwrite=False) as temporary:
        assert temporary.parent == destination.parent
        assert temporary.suffix == ".mrcs"
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"whole")
        assert not destination.exists()
    assert destination.read_bytes() == b"whole"
    assert list(destination.parent.iterdir()) == [destination]


def test_results_are_readable_by_the_group_as_the_umask_says(tmp_path):
    umask = os.umask(0o022)
    try:
        with atomic_path(tmp_path / "out.star", overwrite=False) as temporary:
            temporary.write_text("x")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out.star").stat().st_mode) == 0o644


def test_nothing_is_left_after_an_interruption(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "out.star", overwrite=False) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_stands_there_stays_unless_it_may_be_replaced(tmp_path):
    destination = tmp_path / "out.star"
    destination.write_text("old")
    with pytest.raises(OutputExistsError, match="--force"), atomic_path(destination, overwrite=False):
        pytest.fail("the body must not run")
    with pytest.raises(ValueError), atomic_path(destination, overwrite=True) as temporary:
        temporary.write_text("half")
        raise ValueError
    assert destination.read_text() == "old"
    with atomic_path(destination, overwrite=True) as temporary:
        temporary.write_text("new")
    assert destination.read_text() == "new"


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    raw, link = tmp_path / "raw.star", tmp_path / "link.star"
    raw.write_text("somebody's data")
    link.symlink_to(raw)
    with atomic_path(link, overwrite=True) as temporary:
        temporary.write_text("ours")
    assert raw.read_text() == "somebody's data"
    assert link.read_text() == "ours"
    assert not link.is_symlink()


def test_a_full_disk_is_said_so(tmp_path):
    destination = tmp_path / "out.mrcs"
    with pytest.raises(EmsvaeError, match=r"disk is full.*out\.mrcs"), atomic_path(destination, False) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_refused_writing_is_said_so_but_refused_reading_is_not_ours(tmp_path):
    destination, other = tmp_path / "out.mrcs", tmp_path / "input.mrcs"
    with pytest.raises(EmsvaeError, match="cannot be written"), atomic_path(destination, False) as temporary:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))
    with pytest.raises(PermissionError), atomic_path(destination, False):
        raise PermissionError(errno.EACCES, "Permission denied", str(other))


def test_folders_in_the_way(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(EmsvaeError, match="is a folder"), atomic_path(tmp_path / "folder", overwrite=True):
        pytest.fail("the body must not run")
    with pytest.raises(EmsvaeError, match="cannot be made"), atomic_path(tmp_path / "file" / "out.star", False):
        pytest.fail("the body must not run")


def test_a_long_name_fits_into_what_file_systems_allow(tmp_path):
    destination = tmp_path / ("x" * 250 + ".star")
    with atomic_path(destination, overwrite=False) as temporary:
        temporary.write_text("x")
    assert destination.exists()

"""cryoSPARC gets its own file back with 2-D poses and classes, in the fields and types that its own 2-D classification writes.

What poses, unused rows and the other fields of a small table look like is in `test_export.py`.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emspatialvae.config import InputConfig
from emspatialvae.io.cs import read_cs, write_cs
from emspatialvae.particles.load import load_particles
from emspatialvae.results import export
from emspatialvae.results.latents import Latents
from tests.tools.latents import PREPARED_A, classified

OF_CRYOSPARC = {
    "alignments2D/pose": ("<f4", ()),
    "alignments2D/shift": ("<f4", (2,)),
    "alignments2D/psize_A": ("<f4", ()),
    "alignments2D/class": ("<u4", ()),
    "alignments2D/class_posterior": ("<f4", ()),
}
"""As in the output of cryoSPARC's 2-D classification."""


def types(table: np.ndarray) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (table.dtype[name].base.str, table.dtype[name].shape) for name in table.dtype.names or ()}


def exported(source: Path, out: Path, results: Latents, **options) -> np.ndarray:
    stack = load_particles(InputConfig(source), open_stacks=False)
    export.write_cs(results, stack, out, **options)
    return read_cs(out)


@pytest.fixture
def table() -> np.ndarray:
    """Six particles as cryoSPARC imports them, without alignments."""
    fields = [("uid", "<u8"), ("blob/path", "S12"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,))]
    array = np.zeros(6, [*fields, ("blob/psize_A", "<f4"), ("ctf/df1_A", "<f4")])
    array["uid"] = [2**63 + 9, 4, 2**64 - 1, 7, 1, 2**63]
    array["blob/path"], array["blob/idx"], array["blob/shape"] = b">p.mrcs", [3, 0, 5, 1, 4, 2], 20
    array["blob/psize_A"], array["ctf/df1_A"] = 1.5, 1e4 + np.arange(6)
    return array


def test_new_fields_have_cryosparcs_names_and_types(table, tmp_path):
    write_cs(tmp_path / "in.cs", table)
    results = classified(6, unused=(4,))
    after = exported(tmp_path / "in.cs", tmp_path / "out.cs", results)
    assert {name: found for name, found in types(after).items() if name.startswith("alignments2D")} == OF_CRYOSPARC
    assert after["alignments2D/class"].tolist() == [0, 1, 2, 0, 0, 2]  # from 0; row 4 was not used
    assert after["alignments2D/class_posterior"] == pytest.approx(results.class_posterior)
    np.testing.assert_allclose(after["alignments2D/psize_A"], 1.5)
    assert after["alignments2D/pose"][4] == 0 and after["emsvae/used"].tolist() == [1, 1, 1, 1, 0, 1]
    for name in table.dtype.names or ():
        assert after[name].tobytes() == table[name].tobytes()


def test_types_of_a_real_2d_classification_stay(real_data, tmp_path):
    """Of all that it wrote, only pose, shift, their pixel size and the class change."""
    source = real_data / "cryosparc" / "cryosparc_J2_particles_exported.cs"
    before, results = read_cs(source), classified(22, unused=(3,))
    after = exported(source, tmp_path / "out.cs", results)
    found = types(before)
    assert OF_CRYOSPARC.items() <= found.items() <= types(after).items()
    for name in found:
        if name not in OF_CRYOSPARC:
            assert after[name].tobytes() == before[name].tobytes(), name
        assert after[name][3].tobytes() == before[name][3].tobytes(), name
    assert not np.array_equal(after["alignments2D/class"], before["alignments2D/class"])
    assert set(after["alignments2D/class"][results.used]) == {0, 1, 2}
    shift_A = after["alignments2D/shift"] * after["alignments2D/psize_A"][:, None]
    wanted_A = -results.pose.shift_px * PREPARED_A
    np.testing.assert_allclose(shift_A[results.used], wanted_A[results.used], rtol=1e-5)


def test_real_particles_come_back_with_pose_class_and_images(real_data, tmp_path):
    """The written table still finds its images, and its poses are read as ours."""
    shutil.copy(real_data / "real" / "empiar_10076_7.mrc", tmp_path)
    source = Path(shutil.copy(real_data / "real" / "empiar_10076_7.cs", tmp_path))
    results = classified(7)
    after = exported(source, tmp_path / "out.cs", results)
    assert OF_CRYOSPARC.items() <= types(after).items()
    again = load_particles(InputConfig(tmp_path / "out.cs"))
    assert again.names.tolist() == load_particles(InputConfig(source)).names.tolist() and again.pose is not None
    np.testing.assert_allclose(again.pose.theta_rad, results.pose.theta_rad, atol=1e-6)
    np.testing.assert_allclose(
        again.pose.shift_px * again.pixel_size_A[:, None], results.pose.shift_px * PREPARED_A, atol=1e-5
    )


def test_classes_of_protected_poses_are_protected_too(table, tmp_path):
    write_cs(tmp_path / "in.cs", table)
    once = exported(tmp_path / "in.cs", tmp_path / "once.cs", classified(6))
    kept = exported(tmp_path / "once.cs", tmp_path / "kept.cs", classified(6, unused=(0,)), poses="keep")
    for name in OF_CRYOSPARC:
        assert kept[name].tobytes() == once[name].tobytes()
    assert kept["emsvae/class"].dtype == np.dtype("<u4") and kept["emsvae/class"].tolist() == [0, 1, 2, 0, 1, 2]


def test_export_of_an_export_changes_nothing(table, tmp_path):
    write_cs(tmp_path / "in.cs", table)
    exported(tmp_path / "in.cs", tmp_path / "once.cs", classified(6, unused=(2,)))
    exported(tmp_path / "once.cs", tmp_path / "twice.cs", classified(6, unused=(2,)))
    assert (tmp_path / "once.cs").read_bytes() == (tmp_path / "twice.cs").read_bytes()


def test_export_of_a_part_is_that_part_of_the_export(table, tmp_path):
    rows = np.array([5, 0, 3])
    write_cs(tmp_path / "all.cs", table)
    write_cs(tmp_path / "part.cs", table[rows])
    whole = exported(tmp_path / "all.cs", tmp_path / "all_out.cs", classified(6))
    part = exported(tmp_path / "part.cs", tmp_path / "part_out.cs", classified(6)[rows])
    assert part.dtype == whole.dtype and part.tobytes() == whole[rows].tobytes()


def test_passthrough_fields_come_along_in_the_order_of_the_particles(table, tmp_path):
    main = np.zeros(4, [("uid", "<u8"), ("alignments2D/class", "<u4")])
    main["uid"] = table["uid"][[4, 0, 2, 5]]
    write_cs(tmp_path / "in.cs", main)
    write_cs(tmp_path / "passthrough.cs", table)
    source = InputConfig(tmp_path / "in.cs", passthrough=tmp_path / "passthrough.cs")
    export.write_cs(classified(4), load_particles(source, open_stacks=False), tmp_path / "out.cs")
    after = read_cs(tmp_path / "out.cs")
    assert after["uid"].tolist() == main["uid"].tolist() and after["alignments2D/class"].tolist() == [0, 1, 2, 0]
    for name in set(table.dtype.names or ()) - {"uid"}:
        np.testing.assert_array_equal(after[name], table[name][[4, 0, 2, 5]])


def test_the_command_writes_the_classes_of_the_run(emsvae, easy_stack, tmp_path, monkeypatch):
    """`emsvae export RUN --cs` of a run on a .cs file, once classes stand in its table."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(easy_stack / "particles.mrcs", tmp_path)
    fields = [("uid", "<u8"), ("blob/path", "S20"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")]
    array = np.zeros(48, [*fields, ("blob/sign", "<f4")])
    array["uid"], array["blob/path"], array["blob/idx"] = 1000 + np.arange(48)[::-1], b"particles.mrcs", np.arange(48)
    array["blob/psize_A"], array["blob/sign"] = 4.0, -1.0
    write_cs(tmp_path / "in.cs", array)
    emsvae.done("train", "in.cs", "--out", "run", *emsvae.TINY)
    emsvae.done("export", "run", "--cs", "before.cs")
    assert (tmp_path / "before.cs").read_bytes() == (tmp_path / "run" / "particles.cs").read_bytes()
    assert "alignments2D/class" not in (read_cs(tmp_path / "before.cs").dtype.names or ())
    latents = pd.read_csv("run/latents.csv")
    latents["class_number"], latents["class_posterior"] = 1 + np.arange(48) % 5, 0.75
    latents.to_csv("run/latents.csv", index=False)
    emsvae.done("export", "run", "--cs", "after.cs")
    after = read_cs(tmp_path / "after.cs")
    assert after["uid"].tolist() == array["uid"].tolist()
    assert after["alignments2D/class"].tolist() == [row % 5 for row in range(48)]
    assert OF_CRYOSPARC.items() <= types(after).items()
    assert "exists already" in emsvae.refused("export", "run", "--cs", "after.cs")

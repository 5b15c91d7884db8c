"""Small stacks and particle files, written by hand."""

from pathlib import Path

import numpy as np

from emspatialvae.io.mrc import StackWriter

CS_FIELDS = [
    ("uid", "<u8"),
    ("blob/path", "S20"),
    ("blob/idx", "<u4"),
    ("blob/psize_A", "<f4"),
    ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"),
    ("ctf/accel_kv", "<f4"),
    ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"),
    ("alignments2D/pose", "<f4"),
    ("alignments2D/shift", "<f4", (2,)),
    ("alignments2D/psize_A", "<f4"),
]


def write_stack(path: Path, n: int = 4, box: int = 24, pixel_size_A: float | None = 4.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with StackWriter(path, n, box, pixel_size_A) as stack:
        stack.append(np.random.default_rng(0).normal(size=(n, box, box)))
    return path


OPTICS = "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n"


def write_star(path: Path, images: list[str], optics: str = "1 4.0\n") -> Path:
    """A RELION 3.1 file; an image name may bring its optics group along: ``1@a.mrcs 2``."""
    rows = [image if " " in image else f"{image} 1" for image in images]
    table = "data_particles\n\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n" + "".join(f"{row}\n" for row in rows)
    path.write_text(f"# version 30001\n\n{OPTICS}{optics}\n{table}\n")
    return path


def cs_table(n=3):
    table = np.zeros(n, CS_FIELDS)
    table["uid"] = np.arange(n) + 100
    table["blob/path"] = b">a.mrcs"
    table["blob/idx"] = np.arange(n)[::-1]
    table["blob/psize_A"] = 1.5
    for name, value in (("ctf/accel_kv", 300), ("ctf/cs_mm", 2.7), ("ctf/amp_contrast", 0.1), ("ctf/df1_A", 1e4)):
        table[name] = value
    table["ctf/df2_A"], table["ctf/df_angle_rad"] = 9500, 0.3
    table["alignments2D/pose"], table["alignments2D/shift"], table["alignments2D/psize_A"] = 0.5, (2, -1), 3.0
    return table

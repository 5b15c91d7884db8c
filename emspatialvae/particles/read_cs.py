"""cryoSPARC's .cs files as a `ParticleStack`. Nothing here looks for the images; `emspatialvae.particles.load` does."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.config import InputConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.imaging import geometry
from emspatialvae.imaging.ctf import completed
from emspatialvae.io import cs
from emspatialvae.io.image_names import image_name
from emspatialvae.particles.pixel_size import pixel_size_or_nan
from emspatialvae.particles.stack import OpticsGroup, ParticleStack

Numbers = dict[str, NDArray[np.float64]]
CS_CTF = {
    "defocus_u_A": "ctf/df1_A",
    "defocus_v_A": "ctf/df2_A",
    "astigmatism_rad": "ctf/df_angle_rad",
    "phase_shift_rad": "ctf/phase_shift_rad",
    "voltage_kV": "ctf/accel_kv",
    "cs_mm": "ctf/cs_mm",
    "amplitude_contrast": "ctf/amp_contrast",
}
"""What the fields of `CtfParams` are called in .cs files."""


_NUMBER = ("numbers", ())
_EXPECTED = {
    "blob/path": ("text", ()),
    "blob/idx": ("whole numbers", ()),
    **dict.fromkeys(("blob/psize_A", *CS_CTF.values(), "alignments2D/pose", "alignments2D/psize_A"), _NUMBER),
    "alignments2D/shift": ("numbers", (2,)),
}


def read_cs_source(config: InputConfig) -> ParticleStack:
    """Read a cryoSPARC particle table, with its passthrough joined on uid where one is given."""
    array = cs.read_cs(config.particles)
    if config.passthrough is not None:
        array = cs.join_passthrough(array, cs.read_cs(config.passthrough))
    fields = array.dtype.names or ()
    for field in ("blob/path", "blob/idx"):
        if field not in fields:
            raise ParticleFileError(
                f"{config.particles}: no field {field} (found {len(fields)} fields, first {', '.join(fields[:3])}); "
                "give the job's passthrough file with --passthrough"
            )
    cs.check_fields(config.particles, array, _EXPECTED)
    spelled, file_of = np.unique(array["blob/path"], return_inverse=True)
    pixel_size_A = np.full(len(array), config.pixel_size_A or np.nan)
    if config.pixel_size_A is None and "blob/psize_A" in fields:
        pixel_size_A = array["blob/psize_A"].astype(np.float64)
        pixel_size_A[pixel_size_A == 0] = np.nan  # 0 stands for an unknown pixel size
    # One optics group per set of recording conditions, as RELION wants them.
    beam = [array[f].astype(np.float64) for f in ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast") if f in fields]
    # Two NaN would count as different kinds.
    kinds, optics_of = np.unique(np.nan_to_num(np.stack([pixel_size_A, *beam], 1)), axis=0, return_inverse=True)
    sizes = [pixel_size_or_nan(config, float(kind[0])) for kind in kinds]
    ctf, assumed = completed(_cs_ctf(array), CS_CTF)
    in_angstrom = _cs_pose_in_angstrom(array)
    return ParticleStack(
        source=config.particles,
        kind="cs",
        names=np.array(
            [
                image_name(i, cs.decode_path(path))
                for i, path in zip(array["blob/idx"].tolist(), array["blob/path"].tolist(), strict=True)
            ],
            dtype=object,
        ),
        paths=tuple(cs.decode_path(path) for path in spelled.tolist()),
        file_of=file_of.astype(np.int32),
        index_of=array["blob/idx"].astype(np.int64),
        optics=tuple(OpticsGroup(f"opticsGroup{n + 1}", size) for n, size in enumerate(sizes)),
        optics_of=optics_of.reshape(-1).astype(np.int32),
        ctf=ctf,
        pose=None if in_angstrom is None else in_angstrom.scaled(1 / pixel_size_A),
        shift_A=in_angstrom.shift_px if in_angstrom is not None and np.isnan(pixel_size_A).all() else None,
        metadata=array,
        notes=tuple(assumed),
    )


def _cs_ctf(array: NDArray[Any]) -> Numbers:
    """The CTF fields that the file has, under our names."""
    fields = array.dtype.names or ()
    return {ours: array[theirs].astype(np.float64) for ours, theirs in CS_CTF.items() if theirs in fields}


def _cs_pose_in_angstrom(array: NDArray[Any]) -> geometry.Pose2D | None:
    """The poses in the file as of pixels of 1 A."""
    if not {"alignments2D/pose", "alignments2D/shift", "alignments2D/psize_A"} <= set(array.dtype.names or ()):
        return None
    pose = geometry.from_cryosparc(array["alignments2D/pose"], array["alignments2D/shift"])
    return pose.scaled(array["alignments2D/psize_A"].astype(np.float64))

"""`ParticleStack`: which particles there are, in which order, where their images lie and what is known about them.

A table that never changes, with images that are read when asked for. The number of particles and their order are those of the
metadata file: row i here is row i of the STAR or .cs file, whatever the numbers before the ``@`` say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import ParticleFileError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.ctf import CtfParams
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io.image_names import image_name
from emspatialvae.io.images import ImageFile, channels_of, read_images
from emspatialvae.io.mrc import MrcHeader
from emspatialvae.io.star import StarFile


@dataclass(frozen=True)
class OpticsGroup:
    """What particles recorded under the same conditions share."""

    name: str
    pixel_size_A: float
    phase_flipped: bool = False
    """The images' phases were flipped already (``rlnCtfDataArePhaseFlipped``)."""
    ctf_premultiplied: bool = False
    """The images were multiplied by their CTF already (``rlnCtfDataAreCtfPremultiplied``)."""


@dataclass(frozen=True, eq=False)
class ParticleStack:
    """n particles in the order of their metadata file.

    Attributes
    ----------
    source, kind
        The file that was read, and what it is.
    names
        Shape [n], the image names as the metadata spell them (``000012@stack.mrcs``; for .cs made in the same form).
    paths, file_of, index_of
        The stacks as the metadata spell them; for each particle its stack [n] and the 0-based image in it [n].
    optics, optics_of
        Optics groups; for each particle its group [n].
    ctf
        CTF parameters, NaN where unknown; None when the file has none at all.
    pose
        Poses in the file, in pixels of each particle's own optics group; None when the file has none.
    shift_A
        Their shifts in angstrom [n, 2], where the file gives them so and not the pixel size; else None. See `of_pixel_size`.
    has_3d_pose
        The file holds non-zero ``rlnAngleRot`` / ``rlnAngleTilt``: its poses belong to a 3-D refinement.
    metadata
        What the file itself holds, for writing back: a `StarFile`, a .cs array, or None for bare images.
    notes
        What was odd about the input, a sentence each.
    files
        The opened stacks, one per path; empty when only the metadata were asked for.
    """

    source: Path
    kind: Literal["star", "cs", "mrc", "npy", "folder"]
    names: NDArray[Any]
    paths: tuple[str, ...]
    file_of: NDArray[np.int32]
    index_of: NDArray[np.int64]
    optics: tuple[OpticsGroup, ...]
    optics_of: NDArray[np.int32]
    ctf: CtfParams | None = None
    pose: Pose2D | None = None
    shift_A: Floats | None = None
    has_3d_pose: bool = False
    metadata: StarFile | NDArray[Any] | None = None
    notes: tuple[str, ...] = ()
    files: tuple[ImageFile, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def image_names(self, paths: Sequence[str]) -> list[str]:
        """Each particle's image as ``N@path``, the stacks spelled as in ``paths``, one for each of `paths`; [n]."""
        where: list[tuple[int, int]] = np.stack([self.index_of, self.file_of], 1).tolist()
        return [image_name(index, paths[file]) for index, file in where]

    @property
    def optics_names(self) -> tuple[str, ...]:
        """Names of the optics groups, in their order."""
        return tuple(group.name for group in self.optics)

    @property
    def pixel_size_A(self) -> NDArray[np.float64]:
        """Pixel size of every particle's image in angstrom; shape [n]."""
        return np.array([group.pixel_size_A for group in self.optics])[self.optics_of]

    def of_pixel_size(self, pixel_size_A: float) -> "ParticleStack":
        """The same particles once the pixel size is known that their file does not say."""
        optics = tuple(replace(group, pixel_size_A=pixel_size_A) for group in self.optics)
        pose = self.pose
        if pose is not None and self.shift_A is not None:
            pose = Pose2D(pose.theta_rad, self.shift_A).scaled(1 / pixel_size_A)
        return replace(self, optics=optics, pose=pose, shift_A=None)

    @property
    def boxes(self) -> tuple[int, ...]:
        """The box sizes that occur among the particles, sorted; empty when only the metadata were asked for."""
        used: list[int] = np.unique(self.file_of).tolist() if self.files else []
        return tuple(sorted({self.files[f].width for f in used}))

    @property
    def channels(self) -> int:
        """Of every image: 1, or more where colour came in as pictures."""
        return max((channels_of(file) for file in self.files), default=1)

    @property
    def of_pictures(self) -> bool:
        """Some images are pictures (.npy, png, jpg, tif): not recordings of particles against noise."""
        return any(not isinstance(file, MrcHeader) for file in self.files)

    def images(self, rows: Sequence[int] | NDArray[Any] | slice) -> NDArray[np.float32]:
        """Read the raw images of some particles, in the order asked, of colour the mean; shape [k, box, box].

        Raises
        ------
        ParticleFileError
            The rows have images of different sizes.
        """
        images = self.channel_images(rows)
        return images[:, 0] if images.shape[1] == 1 else images.mean(1)

    def channel_images(self, rows: Sequence[int] | NDArray[Any] | slice) -> NDArray[np.float32]:
        """Read the raw images of some particles, in the order asked; shape [k, channels, box, box].

        Raises
        ------
        ParticleFileError
            The rows have images of different sizes.
        """
        wanted = np.arange(len(self))[rows]
        found: list[int] = np.unique(self.file_of[wanted]).tolist()
        boxes = {self.files[f].width for f in found}
        if len(boxes) > 1:
            raise ParticleFileError(
                f"{self.source}: images of {sorted(boxes)} pixels do not fit into one array; use --box"
            )
        out = np.empty((len(wanted), self.channels, *(2 * [boxes.pop() if boxes else 0])), dtype=np.float32)
        for f in found:
            here = np.flatnonzero(self.file_of[wanted] == f)
            out[here] = read_images(self.files[f], self.index_of[wanted[here]])
        return out

    def chunks(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Row numbers in portions of at most ``size``, in the order of the disk, each with one box and optics group."""
        order = np.lexsort((self.index_of, self.file_of, self.optics_of))
        width = np.array([file.width for file in self.files])[self.file_of]
        kind = self.optics_of[order].astype(np.int64) * (1 + max(self.boxes, default=0)) + width[order]
        for run in np.split(order, np.flatnonzero(np.diff(kind)) + 1):
            for start in range(0, len(run), size):
                yield run[start : start + size]

    def subset(self, rows: Sequence[int] | NDArray[Any] | slice) -> "ParticleStack":
        """Some of the particles, in the order asked. The metadata stay whole: see `export` for writing subsets."""
        return replace(
            self,
            names=self.names[rows],
            file_of=self.file_of[rows],
            index_of=self.index_of[rows],
            optics_of=self.optics_of[rows],
            ctf=None if self.ctf is None else self.ctf[rows],
            pose=None if self.pose is None else self.pose[rows],
            shift_A=None if self.shift_A is None else self.shift_A[rows],
        )

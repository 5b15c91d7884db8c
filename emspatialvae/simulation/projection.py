"""Projections of a 3-D map: central slices of its Fourier transform.

The transform of a projection is a slice through the transform of the map (Bracewell 1956). The map is padded with zeros to twice its
size, and slices are taken by cubic splines; what the splines do to the map (a fall towards the edges: gridding) is divided out
beforehand. Lengths of the map are voxels, those of images pixels; both have their centre at index ``size // 2``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import pixel_axis

PADDING = 2
MARGIN = (
    8  # samples of the transform kept beyond the last frequency: a cubic spline looks at two, its poles decay by then
)
EDGE_VOXELS = 2.0  # over which the sphere that fits into the map fades out


class MapProjector:
    """Draws a map in any pose.

    A rotated map has no corners: what lies outside the sphere that just fits into the cube is left out. Frequencies up to the
    Nyquist circle of the images, or of the map where that is lower, are drawn.

    Parameters
    ----------
    density
        Shape [m, m, m], axes (z, y, x), on a background of 0.
    voxel_A, pixel_size_A
        Sizes of a voxel of the map and of a pixel of the images, in angstrom.
    """

    def __init__(self, density: NDArray[np.floating], voxel_A: float, pixel_size_A: float) -> None:
        side = len(density)
        self.step = voxel_A / pixel_size_A
        """Pixels per voxel."""
        self.frame = 2 * int(np.ceil((side * self.step + 2) / 2))
        """Side in pixels of the square in which one projection is drawn; what a sphere of the map's size needs."""
        self._padded = PADDING * side
        scale = (
            voxel_A * self.step**2
        )  # sum over voxels to integral along the depth, samples per area of a voxel to per pixel
        highest = int(np.ceil(min(0.5, 0.5 * self.step) * self._padded)) + MARGIN
        self._centre = min(highest, self._padded // 2)
        self._real, self._imaginary = _spline_transform(scale * density * _inside(side), self._padded, self._centre)
        fy, fx = np.meshgrid(np.fft.fftfreq(self.frame), np.fft.rfftfreq(self.frame), indexing="ij")
        self._keep = np.hypot(fx, fy) < min(0.5, 0.5 / self.step) - 1e-9
        self._fx, self._fy = fx[self._keep], fy[self._keep]

    def images(self, rotations: Floats, shifts_px: Floats) -> Floats:
        """Projections in the projector's own frame; [n, frame, frame], in density times angstrom.

        Parameters
        ----------
        rotations
            Shape [n, 3, 3]; as `emspatialvae.imaging.geometry.view_rotations`.
        shifts_px
            Shape [n, 2]; (x, y), a fraction of a pixel: what is shifted over an edge comes in at the opposite one.
        """
        n, side = len(rotations), self.frame
        # A^T (fx, fy, 0): the frequency in the map, in its axes (x, y, z)
        where = rotations[:, 0, :, None] * self._fx + rotations[:, 1, :, None] * self._fy
        where *= self.step * self._padded
        at = where[:, ::-1].swapaxes(0, 1).reshape(3, -1) + self._centre
        values = self._sampled(self._real, at) + 1j * self._sampled(self._imaginary, at)
        turns = shifts_px[:, :1] * self._fx + shifts_px[:, 1:] * self._fy
        transform = np.zeros((n, side, side // 2 + 1), dtype=np.complex128)
        transform[:, self._keep] = values.reshape(n, -1) * np.exp(-2j * np.pi * turns)
        drawn = np.fft.irfft2(transform, s=(side, side))
        return np.fft.fftshift(drawn, axes=(1, 2))

    @staticmethod
    def _sampled(coefficients: NDArray[np.float32], at: Floats) -> Floats:
        return ndimage.map_coordinates(coefficients, at, np.float64, order=3, prefilter=False, mode="grid-wrap")

    def draw(self, rotations: Floats, shifts_px: Floats, owner: NDArray[np.int64], canvas: Floats) -> None:
        """Add one projection after the other to the images of a canvas; nothing comes in at the opposite edge.

        Parameters
        ----------
        rotations, shifts_px
            Shapes [n, 3, 3] and [n, 2]; shifts as far as one likes, from the centre of the image, in pixels.
        owner
            Shape [n]; the image of the canvas that each is added to.
        canvas
            Shape [k, box, box].
        """
        if not len(rotations):
            return
        whole = np.rint(shifts_px).astype(np.int64)
        box, side = canvas.shape[-1], self.frame
        for image, (x, y), to in zip(self.images(rotations, shifts_px - whole), whole, owner, strict=True):
            (into_x, from_x), (into_y, from_y) = (_overlap(box, side, move) for move in (x, y))
            canvas[to, into_y, into_x] += image[from_y, from_x]


def _overlap(box: int, side: int, move: int) -> tuple[slice, slice]:
    """Where the pixels of an axis of ``side`` lie on one of ``box``, their centres ``move`` apart: (in the box, in the side)."""
    first = box // 2 - side // 2 + move
    start, end = max(first, 0), min(first + side, box)
    end = max(start, end)
    return slice(start, end), slice(start - first, end - first)


def _inside(side: int) -> Floats:
    """1 in the sphere that fits into the cube, 0 outside, a slope of `EDGE_VOXELS` between; [side, side, side]."""
    squares = pixel_axis(side) ** 2
    radius = np.sqrt(squares[:, None, None] + squares[:, None] + squares)
    return np.clip(((side - 1) // 2 + 1 - radius) / EDGE_VOXELS, 0, 1)


def _spline_transform(
    density: NDArray[np.floating], padded: int, centre: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Spline coefficients of the padded map's transform, real and imaginary part; zero frequency at index ``centre``."""
    side = len(density)
    s = pixel_axis(side) / padded
    replicas = np.arange(-4, 5)[:, None]
    response = np.sinc(s) ** 4 / np.sum(np.sinc(s + replicas) ** 4, 0)  # of the cubic cardinal spline
    corrected = (density / (response[:, None, None] * response[:, None] * response)).astype(np.float32)
    wide = np.zeros((padded,) * 3, np.float32)
    first = padded // 2 - side // 2
    wide[(slice(first, first + side),) * 3] = corrected
    transform: Any = fft.fftn(fft.ifftshift(wide), overwrite_x=True)
    del wide
    kept = np.arange(-centre, min(centre + 1, padded - centre)) % padded
    single: Any = np.float32

    def coefficients(part: NDArray[np.floating]) -> NDArray[np.float32]:
        splines: Any = ndimage.spline_filter(part, order=3, output=single, mode="grid-wrap")
        return splines[np.ix_(kept, kept, kept)]

    return coefficients(transform.real), coefficients(transform.imag)

"""Boxes changed in Fourier space only: averaging pixels would move the centre by half a pixel."""

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging import geometry
from emspatialvae.imaging.arrays import Images


def fourier_resampling(box_in: int, box_out: int, step: float | None = None) -> NDArray[np.float32]:
    """Matrix M that resamples one axis by its Fourier series: ``image_out = M @ image_in @ M.T``.

    Output pixel j lies at ``(j - box_out // 2) * step`` input pixels from the input's centre. Frequencies above the new
    Nyquist are left out, the Nyquist itself counts half on either side, so that the result is real and the pixel at the centre
    stays at the centre. With the default step this is plain Fourier cropping; any other step serves stacks whose pixel size
    differs from the one wanted.

    Parameters
    ----------
    box_in, box_out
        Pixels before and after.
    step
        Output pixel size over input pixel size, at least 1 [default: ``box_in / box_out``].

    Returns
    -------
    Shape [box_out, box_in].
    """
    step = box_in / box_out if step is None else step
    if step < 1 - 1e-9 or (box_out - 1) * step > box_in:
        raise ValueError(f"{box_out} pixels at a step of {step:.4g} do not lie within a box of {box_in}")
    highest = box_in / (2 * step)
    k = np.arange(1, int(np.floor(highest + 1e-9)) + 1)
    # The Nyquist is shared by +k and -k: its cosine counts once, not twice.
    weight = np.where(np.isclose(k, highest), 1.0, 2.0)
    distance = step * geometry.pixel_axis(box_out)[:, None] - geometry.pixel_axis(box_in)[None, :]
    series = 1 + np.tensordot(np.cos(2 * np.pi / box_in * distance[..., None] * k), weight, 1)
    return (series / box_in).astype(np.float32)


def resample(images: Images, matrix: NDArray[np.float32]) -> Images:
    """Apply a matrix [box_out, box_in] of `fourier_resampling` to both axes of images [n, box_in, box_in]."""
    # One large product per axis: a small one per image would wake BLAS's threads and wait for them each time, which is
    # ten times slower where other threads want the cores too.
    columns = np.tensordot(images, matrix, (2, 1))
    return np.ascontiguousarray(np.tensordot(columns, matrix, (1, 1)).swapaxes(1, 2), dtype=np.float32)


def fourier_crop(images: Images, box: int) -> Images:
    """Reduce the box of images [n, b, b] to ``box`` pixels, keeping the field of view and the mean."""
    matrix = fourier_resampling(images.shape[-1], box)
    return resample(images, matrix)

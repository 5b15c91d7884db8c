"""Pure functions on stacks of images, ``float32 [n, box, box]``, with the centre at ``box // 2``.

Box sizes are changed in Fourier space only: averaging pixels would move the centre by half a pixel.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage

from emspatialvae import ctf, geometry
from emspatialvae.background import LEAST_PIXELS, fit_background
from emspatialvae.geometry import Pose2D

Images = NDArray[np.float32]
LARGEST = 1e9
"""Of the values of an image; a detector counts electrons, so none comes near."""


def brightness(images: Images) -> Images:
    """Images [n, box, box] as they are, those with channels [n, c, box, box] as the mean of these; [n, box, box]."""
    return images if images.ndim == 3 else images.mean(1)


def circular_mask(box: int, radius_px: float) -> NDArray[np.bool_]:
    """True within ``radius_px`` of the centre; shape [box, box]."""
    x, y = geometry.pixel_grid(box)
    return x**2 + y**2 <= radius_px**2


def soft_mask(box: int, radius_px: float, edge_px: float) -> Images:
    """1 within ``radius_px`` of the centre, 0 from ``edge_px`` further on, half a cosine between; shape [box, box]."""
    beyond = (np.hypot(*geometry.pixel_grid(box)) - radius_px) / edge_px
    return np.asarray((1 + np.cos(np.pi * beyond.clip(0, 1))) / 2, dtype=np.float32)


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


def background(images: Images, radius_px: float) -> tuple[Images, Images]:
    """Mean and s.d. of each image outside a circle; two arrays of shape [n]."""
    outside = images[:, ~circular_mask(images.shape[-1], radius_px)]
    return outside.mean(1), outside.std(1)


def moderate(images: Images) -> Images:
    """Images [n, b, b] of absurdly large or small values (beyond 1e9, below 1e-9) times a power of two each, the others as they are.

    Squares of such values leave the range of float32; what is normalised afterwards has lost its scale anyway.
    """
    largest = np.abs(images).max((1, 2))
    absurd = np.isfinite(largest) & ((largest > LARGEST) | ((largest < 1 / LARGEST) & (largest > 0)))
    if not absurd.any():
        return images
    out = images.copy()
    out[absurd] = np.ldexp(images[absurd], -np.frexp(largest[absurd])[1][:, None, None])
    return out


def normalise(images: Images, radius_px: float) -> Images:
    """Background level and slope 0, noise of s.d. 1 outside the circle (RELION's rule, ``relion_preprocess --norm --bg_radius``).

    Neighbours do not count; see `emspatialvae.background`. Where the circle leaves fewer than 50 pixels, plain mean and s.d. of these
    are taken. A noise-free background (s.d. below a thousandth of the image's own) would be blown up beyond all bounds; such an image
    is scaled by its own s.d. instead.
    """
    if np.count_nonzero(~circular_mask(images.shape[-1], radius_px)) < LEAST_PIXELS:
        mean, sd = background(images, radius_px)
        flat = np.subtract(images, mean[:, None, None], dtype=np.float32)
    else:
        plane, sd = fit_background(images, radius_px)
        flat = np.subtract(images, plane, out=plane)
    whole_sd = flat.std((1, 2))
    # What rounding leaves of a plane is no noise either.
    enough = (sd > 1e-3 * whole_sd) & (sd > 1e-6 * np.abs(images).max((1, 2)))
    scale = np.where(enough, sd, whole_sd)
    flat /= np.where(scale > 0, scale, np.float32(1))[:, None, None]
    return flat


def highpass(images: Images, period_px: float) -> Images:
    """Take out of images [n, box, box] what is coarser than a period; half of the amplitude is left at the period itself.

    The transfer is ``1 - 2^(-(k period)^2)`` at the frequency k: a Gaussian edge, so nothing rings. The transform is that of the
    image continued by its mirror image (the cosine transform), so a slope makes no step at the edges of the box.
    """
    k = np.arange(images.shape[-1], dtype=np.float32) / (2 * images.shape[-1])
    transfer = 1 - np.exp2(-(period_px**2) * (k[:, None] ** 2 + k**2))
    transform = fft.dctn(images, axes=(1, 2), norm="ortho")
    return np.asarray(fft.idctn(transform * transfer, axes=(1, 2), norm="ortho"), dtype=np.float32)


def unusable(images: Images) -> NDArray[np.bool_]:
    """True for images that are constant or hold NaN or infinity; shape [n]."""
    with np.errstate(invalid="ignore", over="ignore"):
        spread = images.max((1, 2)) - images.min((1, 2))
    return ~np.isfinite(spread) | (spread == 0)


def replace_hot_pixels(images: Images, sd: float) -> tuple[Images, NDArray[np.int64]]:
    """Replace lone pixels that leave both the image and their neighbourhood by more than ``sd`` s.d. of the image.

    A bright particle stands out together with its neighbours and stays; a hot or dead pixel or an X-ray hit does not.

    Returns
    -------
    The images (copied only where something changed) and the number of pixels replaced in each, shape [n].
    """
    mean, spread = images.mean((1, 2), keepdims=True), images.std((1, 2), keepdims=True)
    candidates = np.argwhere(np.abs(images - mean) > sd * spread)
    replaced = np.zeros(len(images), dtype=np.int64)
    out = images
    for n, row, column in candidates:
        patch = images[n, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        # The pixel itself is in the patch; with 4 to 9 values its weight in the median is that of one neighbour.
        neighbours = float(np.median(patch))
        if abs(float(images[n, row, column]) - neighbours) > sd * float(spread[n, 0, 0]):
            out = images.copy() if out is images else out
            out[n, row, column] = neighbours
            replaced[n] += 1
    return out, replaced


def brightness_of_centre(images: Images, radius_px: float) -> tuple[float, float]:
    """By how much the inner half of the mask is brighter than the background, and the standard error of that.

    Averaged over the images, in their own units (background s.d. after `normalise`); negative means dark particles.
    """
    mean, _ = background(images, radius_px)
    difference = images[:, circular_mask(images.shape[-1], radius_px / 2)].mean(1) - mean
    # Without a second image to compare with, one image can say nothing about its own scatter.
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return float(difference.mean()), float(error)


def align(images: ArrayLike, pose: Pose2D, fill: float = 0.0, order: int = 3) -> Images:
    """Take rotation and shift out: the image as the object's own frame sees it.

    Parameters
    ----------
    images
        Shape [n, box, box].
    pose
        n poses, shifts in pixels of these images.
    fill
        Value for what lies outside the image.
    order
        Degree of the interpolating spline.
    """
    stack = np.asarray(images, dtype=np.float32)
    x, y = geometry.pixel_grid(stack.shape[-1])
    centre = stack.shape[-1] // 2
    out = np.empty_like(stack)
    for n, image in enumerate(stack):
        theta, (shift_x, shift_y) = pose.theta_rad[n], pose.shift_px[n]
        at_x, at_y = geometry.object_to_image_xy(x, y, np.cos(theta), np.sin(theta), shift_x, shift_y)
        ndimage.map_coordinates(image, [at_y + centre, at_x + centre], out[n], order=order, mode="constant", cval=fill)
    return out


def fourier_ring_correlation(first: Images, second: Images) -> NDArray[np.float64]:
    """Correlation of two sets of images [n, box, box], ring by ring of the Fourier plane; shape [n, box // 2 + 1].

    Rings as those of `ctf.ring_power`: ring r holds the frequency ``r / box`` in cycles per pixel. NaN where an image has
    nothing in a ring. (Saxton and Baumeister, J. Microsc. 127, 127 (1982).)
    """
    box = first.shape[-1]
    ring, weight = (values.ravel() for values in ctf.rings(box))

    def summed(values: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.bincount(ring, weight * values.ravel()).astype(np.float64)[: box // 2 + 1]

    curves = np.empty((len(first), box // 2 + 1))
    for curve, one, other in zip(curves, first, second, strict=True):
        a, b = np.fft.rfft2(one.astype(np.float64)), np.fft.rfft2(other.astype(np.float64))
        with np.errstate(invalid="ignore"):
            curve[:] = summed((a * b.conj()).real) / np.sqrt(summed(np.abs(a) ** 2) * summed(np.abs(b) ** 2))
    return curves


def resolution_A(curves: NDArray[np.floating], threshold: float, field_A: float) -> NDArray[np.float64]:
    """Where ring correlations [n, rings] first fall below a threshold, linearly between rings; in angstrom, shape [n].

    Twice the pixel size where they never do; NaN where they are below from the first ring on, or not known.

    Parameters
    ----------
    field_A
        Side of the box in angstrom: ring r holds the frequency ``r / field_A``.
    """
    found = np.full(len(curves), np.nan)
    last = curves.shape[1] - 1
    for n, curve in enumerate(curves):
        below = np.flatnonzero(~(curve[1:] >= threshold)) + 1
        ring = float(below[0]) if len(below) else float(last)
        if len(below) and ring > 1:
            before, after = curve[below[0] - 1], curve[below[0]]
            ring -= (threshold - after) / (before - after) if np.isfinite(after) else 1
        if ring > 1 or not len(below):
            found[n] = field_A / ring
    return found


def radial_average(images: Images) -> Images:
    """Mean over rings one pixel wide about the centre; shape [n, box // 2 + 1]."""
    x, y = geometry.pixel_grid(images.shape[-1])
    ring = np.rint(np.hypot(x, y)).astype(int)
    kept = ring <= images.shape[-1] // 2
    count = np.bincount(ring[kept])
    return np.stack([np.bincount(ring[kept], image[kept]) / count for image in images]).astype(np.float32)

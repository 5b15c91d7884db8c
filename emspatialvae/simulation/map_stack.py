"""Stacks of projections of a 3-D map over all views, with neighbours, junk, CTF and noise, and the truth of each image."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.simulation.crowd import Neighbours, Views, annulus_px, draw_neighbours, draw_views
from emspatialvae.simulation.density import Density
from emspatialvae.simulation.junk import aggregate_images
from emspatialvae.simulation.microscope import Microscope
from emspatialvae.simulation.projection import MapProjector

if TYPE_CHECKING:
    from emspatialvae.config import SimulateConfig


PIXELS_AT_ONCE = 1 << 22
"""Of images drawn together: some 200 MB of numbers."""
EMPTY, BESIDE_NOTHING, AGGREGATE = range(3)
"""Kinds of junk: nothing at all; neighbours of an empty place; aggregates."""


@dataclass(frozen=True, eq=False)
class MapStack:
    """n images to be, without noise.

    Attributes
    ----------
    projector
        Draws the map.
    views, shift_px
        Of the n particles: directions, and shifts [n, 2] in pixels; they mean nothing for junk.
    neighbours
        Of all images, junk too.
    junk_kind
        Shape [n]; -1 for particles.
    microscope
        CTF and noise of the n images.
    diameter_px
        Of a particle.
    height
        What the map is multiplied by.
    """

    projector: MapProjector
    views: Views
    shift_px: Floats
    neighbours: Neighbours
    junk_kind: NDArray[np.int64]
    microscope: Microscope
    diameter_px: float
    height: float = 1.0

    @property
    def is_junk(self) -> NDArray[np.bool_]:
        """Shape [n]."""
        return self.junk_kind >= 0

    @property
    def pose(self) -> Pose2D:
        """In-plane poses of the n particles."""
        return Pose2D(self.views.theta_rad, self.shift_px)

    @property
    def _frame(self) -> int:
        """Side of what is drawn before the box is cut out: twice the box where there is a CTF, which spreads over the edges."""
        box = self.microscope.box
        return box if self.microscope.ctf is None else 2 * box

    def portions(self) -> Iterator[slice]:
        """Ranges of images that can be drawn at once, all of them in turn; which they are changes no image."""
        n, step = len(self.junk_kind), max(1, PIXELS_AT_ONCE // self._frame**2)
        return (slice(start, min(start + step, n)) for start in range(0, n, step))

    def particles(self, rows: slice, through_ctf: bool) -> Floats:
        """Clean particles of a range of images, junk left empty, before or after the CTF; [k, box, box]."""
        canvas = self._canvas(rows)
        self._add_particles(rows, canvas)
        return self._through_microscope(rows, canvas) if through_ctf else self._cut(canvas)

    def images(self, rows: slice, aggregate_rms: float, rng: np.random.Generator) -> Floats:
        """All that is in a range of images, neighbours and junk, after the CTF; [k, box, box]."""
        canvas = self._canvas(rows)
        self._add_particles(rows, canvas)
        near = self.neighbours.of(rows)
        owner, offset = self.neighbours.owner[near], self.neighbours.offset_px[near]
        rotations = self.neighbours.views[near].rotations
        self.projector.draw(rotations, self.shift_px[owner] + offset, owner - rows.start, canvas)
        canvas *= self.height
        clumps = np.flatnonzero(self.junk_kind[rows] == AGGREGATE)
        canvas[clumps] = aggregate_images(len(clumps), self._frame, self.microscope.box, aggregate_rms, rng)
        return self._through_microscope(rows, canvas)

    def _canvas(self, rows: slice) -> Floats:
        return np.zeros((rows.stop - rows.start, self._frame, self._frame))

    def _add_particles(self, rows: slice, canvas: Floats) -> None:
        real = rows.start + np.flatnonzero(~self.is_junk[rows])
        self.projector.draw(self.views[real].rotations, self.shift_px[real], real - rows.start, canvas)

    def _through_microscope(self, rows: slice, canvas: Floats) -> Floats:
        return self._cut(replace(self.microscope[rows], box=self._frame).image(canvas.astype(np.float64)))

    def _cut(self, canvas: Floats) -> Floats:
        box = self.microscope.box
        first = self._frame // 2 - box // 2
        return canvas[:, first : first + box, first : first + box]


def draw_map_stack(
    config: "SimulateConfig",
    density: Density,
    microscope: Microscope,
    for_truth: np.random.Generator,
    for_junk: np.random.Generator,
    for_neighbours: np.random.Generator,
) -> MapStack:
    """Views, shifts, junk and neighbours of ``config.particles`` images, the signal as strong as ``config.snr`` asks.

    Raises
    ------
    EmsvaeError
        Every image is junk, or neighbours are asked for and the particle is so large that none reaches into the box.
    """
    n, box = config.particles, config.box
    views = draw_views(n, for_truth)
    shift_px = config.shift_px * for_truth.standard_normal((n, 2))
    is_junk = for_junk.random(n) < config.junk
    kind = np.where(is_junk, for_junk.integers(3, size=n), -1)
    if is_junk.all():
        raise EmsvaeError("simulate: every particle is junk; lower --junk or ask for more --particles")
    diameter_px = density.diameter_A() / config.pixel_size_A
    inner, outer = annulus_px(diameter_px, box)
    if (config.crowding > 0 or is_junk.any()) and inner + diameter_px / 4 > outer:
        raise EmsvaeError(
            f"simulate: the particle is {diameter_px:.0f} px wide, so that no neighbour reaches into a box of {box} px; take a larger"
            " --box, or --crowding 0 and --junk 0"
        )
    alone = is_junk & (kind != BESIDE_NOTHING)
    neighbours = draw_neighbours(config.crowding, alone, kind == BESIDE_NOTHING, diameter_px, box, for_neighbours)
    projector = MapProjector(density.values, density.voxel_A, config.pixel_size_A)
    return MapStack(projector, views, shift_px, neighbours, kind, microscope, diameter_px)


def clean_variances(stack: MapStack) -> tuple[float, float]:
    """Variance over all pixels of the clean particles, junk left out: before and after the CTF."""
    sums = np.zeros((2, 2))
    for rows in stack.portions():
        real = ~stack.is_junk[rows]
        for through_ctf in (False, True) if stack.microscope.ctf is not None else (False,):
            images = stack.particles(rows, through_ctf)[real]
            sums[int(through_ctf)] += images.sum(), np.vdot(images, images)
    pixels = int((~stack.is_junk).sum()) * stack.microscope.box**2
    before, after = sums[:, 1] / pixels - (sums[:, 0] / pixels) ** 2
    return float(before), float(before if stack.microscope.ctf is None else after)


def facts_of(stack: MapStack, density: Density) -> dict[str, Any]:
    """What simulation.json says about the map and its surroundings, beside the settings."""
    inner, outer = annulus_px(stack.diameter_px, stack.microscope.box)
    return {
        "map_side": len(density.values),
        "map_voxel_A": density.voxel_A,
        "map_voxel_from": density.voxel_from,
        "particle_diameter_A": stack.diameter_px * stack.microscope.pixel_size_A,
        "neighbours": len(stack.neighbours.owner),
        "neighbour_distance_px": [inner, outer],
        "junk_kinds": {
            name: int((stack.junk_kind == kind).sum())
            for name, kind in (("empty", EMPTY), ("beside nothing", BESIDE_NOTHING), ("aggregate", AGGREGATE))
        },
    }

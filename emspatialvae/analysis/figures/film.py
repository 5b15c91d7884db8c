"""A path through latent space as a picture that moves, and as a strip of its frames; arrays in, files or figures out."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from emspatialvae.analysis.figures.scale_bar import scale_bar
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.contrast import contrast_limits
from emspatialvae.io.atomic import atomic_path

Grey = NDArray[np.uint8]

SEEN_PX = 256
"""A film is enlarged to at least so many pixels a side."""
FRAME_MS = 90
CAPTION_PX, FONT_PX = 22, 13
COLUMNS = 10
SHOWN = 40
"""Frames of a strip at most, evenly spread over the film's."""
LONG = 60
"""Names of both ends that together have more letters stand on two lines."""
FEW = 10
"""With fewer particles near it than that, a step is marked."""


@dataclass(frozen=True, eq=False)
class Film:
    """k steps along a path and what is known of each."""

    drawn: Floats
    """[k, box, box], by the model."""
    averages: Floats | None
    """[k, box, box] of real particles, or None if they were not asked for."""
    averaged: int
    """Particles in each of the averages."""
    z: Floats
    """[k, d]"""
    travelled: Floats
    """[k], in units of z."""
    near: NDArray[np.int64]
    """[k], particles near the step."""
    ends: tuple[str, str]
    """Names of the particles at both ends."""
    pixel_size_A: float

    def __getitem__(self, steps: NDArray[np.int64]) -> "Film":
        whole = {"averaged", "ends", "pixel_size_A", *(key for key, value in vars(self).items() if value is None)}
        return Film(**{key: value if key in whole else value[steps] for key, value in vars(self).items()})

    @property
    def kinds(self) -> dict[str, Floats]:
        """Label and images [k, box, box] of each kind."""
        said = f"particles\n({self.averaged} nearest)"
        return {"model": self.drawn} | ({} if self.averages is None else {said: self.averages})


def greys(images: Floats) -> Grey:
    """Images [k, box, box] in 256 greys, one scale for all of them, cut at the outermost half percent."""
    low, high = contrast_limits(images)
    return np.rint(np.clip((images - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def write_gif(film: Film, destination: Path, *, force: bool = False) -> None:
    """A film that runs forth and back for ever: the model's frames, beside them those of real particles, with captions."""
    kinds = [greys(images) for images in film.kinds.values()]
    labels = [label.replace("\n", " ") for label in film.kinds]
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_PX)
    steps = len(film.z)
    frames = []
    for step in range(steps):
        said = [*labels]
        said[0] += f", step {step + 1} of {steps}"
        if len(said) > 1 and film.near[step] < FEW:
            said[1] = f"particles: only {film.near[step]} near here"
        frames.append(_frame([images[step] for images in kinds], said, font))
    forth_and_back = frames + frames[-2:0:-1]
    with atomic_path(destination, overwrite=force) as temporary:
        frames[0].save(
            temporary, save_all=True, append_images=forth_and_back[1:], duration=FRAME_MS, loop=0, optimize=False
        )


def _frame(images: list[Grey], captions: list[str], font: ImageFont.FreeTypeFont) -> Image.Image:
    """Images [box, box] side by side, enlarged, each above its caption."""
    box = images[0].shape[-1]
    side = box * -(-SEEN_PX // box)
    canvas = Image.new("L", (side * len(images), side + CAPTION_PX), 0)
    pen = ImageDraw.Draw(canvas)
    for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
        canvas.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), (k * side, 0))
        pen.text((k * side + side // 2, side + CAPTION_PX // 2), caption, fill=255, font=font, anchor="mm")
    return canvas


def strip(film: Film) -> Figure:
    """The frames of a film in reading order, each kind on a grey scale of its own that is the same for all frames."""
    steps = np.unique(np.linspace(0, len(film.z) - 1, min(SHOWN, len(film.z))).round().astype(int))
    shown, box = film[steps], film.drawn.shape[-1]
    # One picture per step, the model's above the particles'.
    towers = np.concatenate([greys(images) for images in shown.kinds.values()], axis=1)
    tall, columns = len(shown.kinds), min(COLUMNS, len(steps))
    lines = -(-len(steps) // columns)
    figure = Figure(figsize=(max(1.05 * columns + 0.6, 7), (0.98 * tall + 0.58) * lines + 0.85), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for at, axes in enumerate(grid.flat):
        if at >= len(steps):
            axes.set_axis_off()
            continue
        axes.imshow(towers[at], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks(np.arange(tall) * box + box / 2 if at % columns == 0 else [])
        axes.set_yticklabels(shown.kinds if at % columns == 0 else [], fontsize=7, rotation=90, va="center")
        axes.tick_params(length=0)
        axes.set_title(_above(shown, at, int(steps[at])), fontsize=7)
        few = shown.near[at] < FEW
        axes.set_xlabel(f"{shown.near[at]:,} near", fontsize=7, color="tab:red" if few else "black")
    scale_bar(grid[0, 0], box, film.pixel_size_A)
    figure.suptitle(_title(film), fontsize=9)
    return figure


def _above(film: Film, at: int, step: int) -> str:
    place = f"({', '.join(f'{value:.2f}' for value in film.z[at])})\n" if film.z.shape[1] <= 2 else ""
    return f"{step + 1}\n{place}{film.travelled[at]:.2f} away"


def _title(film: Film) -> str:
    place = " z," if film.z.shape[1] <= 2 else ""
    few = f"; red: fewer than {FEW}, hardly any particle looks like this" if (film.near < FEW).any() else ""
    gap = "\n" if sum(map(len, film.ends)) > LONG else " "
    return (
        f"From {film.ends[0]}{gap}to {film.ends[1]}, straight through z, rotation and shift taken out\n"
        f"above: step,{place} distance in z from the first; below: particles whose z lies within 2 s.d. of the step{few}"
    )

"""README.md of this folder, put together from what was measured."""

import os
from pathlib import Path
from typing import Any

HEAD = """\
# The paper's experiments

    python examples/paper/run.py mnist|hinge|galaxy|em|all [--size small|full]

Every experiment of [spatial-VAE](https://arxiv.org/abs/1909.11663) (Bepler, Zhong, Kelley, Brignole, Berger, NeurIPS 2019) with `emsvae`: with the
paper's settings (`--preset paper`, engine `coordinate`) and with our default (`steerable`), on the same data. This page is written by the script:
all numbers were measured by it, but for those in columns that say *the paper's*; "not run" is what nobody has run yet.

- `--size full`: the paper's networks, images and epochs. Days on a CPU, so for a GPU.
- `--size small`: meant for two cores and half an hour in all; what a row took stands below it. The `coordinate` models are cut down, in images,
  units and epochs, as each row says; the `steerable` engine runs at its full size on all images (of digits: on those of the other models).
  Where a row says *quick*, all models alike have silu units, a first layer of fine detail, and a learning rate that falls over the last third of the
  epochs: with the paper's tanh networks and constant rate, so few steps leave a decoder of coordinates behind one of pixels (MNIST, z-dim 2, 2,000
  digits, 18 epochs: -181 nats against the vanilla VAE's -160; quick, and 13 epochs of 10,000 digits: below). It draws well, not as well as it can.

What the paper leaves open was taken from the authors' code: 2 hidden layers of tanh units for encoder and decoder, Adam, minibatches of 100.
A finished training is kept in `paper_work/` and not done again.
"""

ROWS = {
    "mnist": (
        "MNIST (Fig. 2 and 3, Appendix Fig. 1)",
        """\
*The paper's*: curves of the ELBO of the three models against z-dim, and the manifold of two z. It gives them as figures, so no number of
theirs stands here.""",
        """\
What differs: digits are posed by us, from whatever idx files are in `--mnist` (with the 10,000 test images alone, a seventh of those is held out
instead of 10,000 of 70,000). The authors' images have 28 px; a digit moved by 14 px is gone from there, so the third set has a canvas of 64
(small: Fourier-cropped to 32, so that its ELBO is one over fewer pixels). Digits that leave it are left in, cut. KL of theta with its mean
(`--theta-kl full`), or the bound would not be one. Priors as in the paper: pi/4 and 0.1 of half the box (14 px for the third set);
wide: pi and four times that. In the small size spatial-VAE leads the vanilla VAE everywhere but for z-dim 5 of the digits that lie straight; there, where no
pose is to be taken out, by little. With ten z, digits of the first two sets are drawn as well without a pose. Quick is also with products of
coordinates and z. Two models train at a time, on a thread each.""",
    ),
    "hinge": (
        "Hinge (Table 1, Fig. 4)",
        """\
*The paper's*: the latents' correlation with hinge and rotation of 5HDB, 20,000 images of 40 px, 16,000 of them to train on and 4,000 to judge by.""",
        """\
What differs: the built-in pseudo-atom hinge (or your own: `--pdb FILE`), 90 degrees, SNR 0.1, not moved. z and, of a vanilla VAE, theta: |Pearson|;
theta of the others: circular correlation (Jammalamadaka and SenGupta). *Gauge*: which of the two domains stands still is arbitrary, and a model may
let its canonical image turn with z without any change of the likelihood. "As reported" leaves that turn in the angle, "gauge removed" takes it out as
a polynomial of the estimated z, fitted on one half of the particles and judged on the other. The steerable engine reports its angles
against one consensus image, so there is little to remove but the difference from the truth's own choice, the body. *Its defaults here*: the paper's
model with what `emsvae train --engine coordinate` adds to it (a sharp pose posterior at the start, a KL warm-up, z from the image with its pose
taken out, eight looks at inference), on "ours" images and epochs; the paper's own settings need far more than a few minutes at SNR 0.1.""",
    ),
    "galaxy": (
        "Galaxies (Fig. 5)",
        """\
*The paper's*: Galaxy Zoo in colour, Bernoulli likelihood, z-dim 20, 50 and 100, shift prior 8 px; pictures drawn, no numbers.""",
        """\
What differs: rendered Sersic galaxies (bulge, disc, 2 to 4 logarithmic arms, colour, inclination, any pose) instead of photographs, unless
`--galaxies FOLDER` names some. "Lie alike" is the mean resultant length of the doubled position angles of 200 samples of the prior; an angle
in z makes it small. Quick is also with a sharp pose posterior at the start and KL warm-up, or theta closes while all galaxies are still round (its KL about
0.01 nats, with and without the paper's tanh). The steerable engine sees one channel and Gaussian noise, so it has no line here.""",
    ),
    "em": (
        "Negative-stain EM (Fig. 6, Appendix Fig. 7 and 8)",
        """\
*The paper's*: antibody and CODH/ACS, 1,000 hidden units, shift prior N(0, 4 px), 20-D z; interpolations, and background that is learned without
a non-negative mean; pictures, no numbers.""",
        """\
What differs: a simulated body with two arms on hinges of their own (SNR 0.3, shifts of 2 px), unless `--stack particles.star` names a real
stack. Correlation with each hinge: of a cubic function of z, or the highest degree that the number of particles allows, fitted on one half and judged
on the other. "Background over object": r.m.s. of the structure that is drawn beyond 0.42 of the box, where there is nothing, over the object's own.""",
    ),
}


def assembled(tables: dict[str, str], results: dict[str, dict[str, Any]], folder: Path) -> str:
    """The page: of every row what the paper says, the table, the figure, how it was cut down, what differs."""
    parts = [HEAD]
    for row, (title, paper, differs) in ROWS.items():
        parts += [f"## {title}\n", paper + "\n", tables[row] + "\n"]
        if (folder / f"{row}.png").is_file():
            parts.append(f"![{title}]({os.path.relpath(folder, folder.parent)}/{row}.png)\n")
        parts += [_cut_down(results[row]), differs + "\n"]
    return "\n".join(parts)


def _cut_down(results: dict[str, Any]) -> str:
    lines = []
    for size, values in results.items():
        settings = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in values["settings"].items())
        lines.append(f"{size}: {settings}. {values['total_seconds']:,.0f} s on {values['machine']}.\n")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        ", ".join(map(str, value))
        if isinstance(value, list | tuple)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )

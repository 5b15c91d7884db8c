"""How likely each particle is to be junk: nothing at all, an edge of ice or carbon, an aggregate, another molecule.

A logistic score of what inference says of a particle already. Each sign says by how many s.d. a particle leaves what is usual
among the others, in the direction that junk does:

    log P(signs | junk) / P(signs | particle) = constant + sum_k coefficient_k * sign_k,      0 <= sign_k <= 6

"Usual" is the median and the quartiles over the particles, each weighted by the probability that it is no junk, and the
share of junk in the stack is found along with it (expectation maximisation of the share: Saerens, Latinne and Decaestecker, Neural
Computation 14, 2002): so the score needs no setting, and a clean stack stays whole.

The coefficients were fitted once, by maximum likelihood, to nine simulations of 3,000 particles of 40 to 48 px after ten epochs of the
steerable engine, with the junk of `emsvae simulate --junk` (a third empty, edges of ice or carbon, aggregates; none to 30 %): hinges and
views, SNR 0.025 to 1.5, with and without CTF and coloured noise, z-dim 1 to 3. On eight others (area under the ROC curve; share of the
junk, and of the particles, that scores above 0.5):

    views, SNR 0.15 / 0.05                           0.998  96 %  0.3 %   /   0.990  90 %  1.5 %
    two hinges, a kind not fitted to, SNR 0.1        0.992  91 %  0.5 %
    hinge, CTF, coloured noise, SNR 0.7, 5 % junk    0.975  36 %  0.1 %
    hinge-b, SNR 0.02: hardly anything is told       0.917  20 %  0.0 %
    no junk at all: hinge, hinge with CTF, views     at most 0.03 % of the particles above 0.5

So where junk is hard to tell it is kept rather than particles lost; with a third of the stack junk, up to 3 % of the particles go with
it. What the score calls junk is what the model cannot explain: a rare, real conformation that it has not learned is among it, so look at
what is thrown away. The coordinate engine reports no misfit and no second poses, and gets no score: its signs are others (in
the simulation tried, junk had the *higher* likelihood), and they were not calibrated.
"""

import numpy as np
from scipy import special

from emspatialvae.imaging.arrays import Floats

CONSTANT = -5.19
COEFFICIENTS = {
    "misfit": 0.99,
    "theta_sd": 0.39,
    "other_pose": 0.58,
    "far_z": 0.56,
    "likelier": 1.22,
    "unlikelier": 2.21,
}
MOST = 6.0
"""No sign counts for more: beyond it all that is certain is that the particle is unusual."""
SHARE = (0.05, 0.5)
"""Of junk in a stack, at least and at most. Pickers bring some along, and without the lower bound junk that is hard to tell would argue
itself away; where most is junk, nothing says what is usual."""
LIKELY = 0.5
"""Above it a particle counts as junk."""
ROUNDS = 30
STILL = 1e-4


def junk_probability(
    misfit: Floats,
    log_likelihood: Floats,
    z: Floats,
    theta_sd_rad: Floats,
    peak_weight: Floats,
) -> Floats:
    """Probability that each of n particles is junk, judged against the others; shape [n].

    Parameters
    ----------
    misfit, log_likelihood, theta_sd_rad, peak_weight
        Shape [n], as in `emspatialvae.results.latents.Latents`.
    z
        Shape [n, d].
    """
    n = len(misfit)
    probability, share = np.zeros(n), 0.1
    if not n:
        return probability
    # z is N(0, I) for particles: one in ten lies farther out than where this begins, one in a hundred counts 1.
    beyond = special.gammaincc(z.shape[1] / 2, (z**2).sum(1) / 2)  # the chi-square distribution's upper tail
    far_z = -np.log10(np.maximum(beyond, 1e-300)) - 1
    for round_ in range(ROUNDS):
        weight = 1 - probability if round_ else None
        likelihood = _unusual(log_likelihood, weight, 1e-3)
        signs = {
            "misfit": _unusual(misfit, weight, 0.1),
            "theta_sd": _unusual(np.log(np.maximum(theta_sd_rad, 1e-6)), weight, 0.05),
            "other_pose": _unusual(np.log10(1 - peak_weight + 1e-3), weight, 0.5),
            "far_z": far_z,
            "likelier": likelihood,
            "unlikelier": -likelihood,
        }
        ratio = CONSTANT + np.sum([COEFFICIENTS[name] * sign.clip(0, MOST) for name, sign in signs.items()], axis=0)
        before, (probability, share) = probability, _posterior(ratio, share)
        if np.abs(probability - before).max() < STILL:
            break
    return probability


def _unusual(values: Floats, weight: Floats | None, least_sd: float) -> Floats:
    """By how many s.d. values [n] exceed what is usual; the s.d. is that of a normal distribution of the same middle half.

    The middle half lies between the quartiles, each value weighted. Without weights, at first, it is the shortest interval that
    holds half of the values (the shorth), which stays where most particles are even if two in five are junk.
    """
    if weight is None:
        ordered = np.sort(values)
        half = (len(ordered) + 1) // 2
        widths = ordered[half - 1 :] - ordered[: len(ordered) - half + 1]
        first = int(widths.argmin())
        low, high = ordered[first], ordered[first + half - 1]
        middle = (low + high) / 2
    else:
        order = np.argsort(values)
        below = np.cumsum(weight[order])
        low, middle, high = np.interp(np.array([0.25, 0.5, 0.75]) * below[-1], below, values[order])
    return (values - middle) / max((high - low) / 1.349, least_sd)


def _posterior(ratio: Floats, share: float) -> tuple[Floats, float]:
    """Probability of junk [n] given log-likelihood ratios [n], and the share of junk that goes with them."""
    probability = np.zeros_like(ratio)
    for _ in range(10):
        probability = 1 / (1 + np.exp(-(ratio + np.log(share / (1 - share)))))
        share = float(np.clip(probability.mean(), *SHARE))
    return probability, share

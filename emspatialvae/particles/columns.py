"""The names of results in files, the one list: labels of STAR files, fields of .cs files, columns of ``latents.csv``.

What RELION or cryoSPARC has a name for goes under theirs, the rest under ``emsvae``.
"""

from dataclasses import dataclass

ANGLE = "rlnAnglePsi"
ORIGIN_A = ("rlnOriginXAngst", "rlnOriginYAngst")
ORIGIN_PX = ("rlnOriginX", "rlnOriginY")
"""In files of RELION 3.0."""
LOG_LIKELIHOOD = "rlnLogLikeliContribution"
USED = ("emsvaeUsed", "emsvae/used")
"""0 for an image that could not be used: a STAR label, a .cs field."""


@dataclass(frozen=True)
class Names:
    """What one result is called in each kind of file."""

    star: str
    cs: str
    csv: str


SCORES = {
    "peak_weight": Names("rlnMaxValueProbDistribution", "emsvae/max_value_prob", "pose_probability"),
    "misfit": Names("emsvaeMisfit", "emsvae/misfit", "misfit"),
    "junk": Names("emsvaeJunk", "emsvae/junk", "junk"),
    "scale": Names("emsvaeScale", "emsvae/scale", "scale"),
    "class_number": Names("rlnClassNumber", "alignments2D/class", "class_number"),
    "class_posterior": Names("emsvaeClassPosterior", "alignments2D/class_posterior", "class_posterior"),
}
"""One number per particle that not every run knows, by the field of `emspatialvae.results.latents.Latents`; in the order of their columns."""
CLASS = SCORES["class_number"].star

POSE_LABELS = (ANGLE, *ORIGIN_A, LOG_LIKELIHOOD, SCORES["peak_weight"].star)
"""What a 3-D refinement has of its own, too."""
RESULT_LABELS = (*POSE_LABELS, *ORIGIN_PX, CLASS)
"""RELION's labels that a run writes under; the rest of its columns start with emsvae."""
RESULT_GROUPS = ("emsvae", "alignments2D/")


def is_result(name: str) -> bool:
    """Whether a run writes a column of that name."""
    return name in RESULT_LABELS or name.startswith(RESULT_GROUPS)


def kept_apart(name: str) -> str:
    """Where a result goes when the column that it belongs in holds something that is not to be overwritten."""
    return f"emsvae{name.removeprefix('rln')}" if name.startswith("rln") else f"emsvae/{name.rpartition('/')[2]}"

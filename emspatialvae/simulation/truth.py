"""What is known of a simulated stack: the truth of every particle, and the generator that made it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging import geometry
from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.ctf import CtfParams
from emspatialvae.imaging.geometry import Pose2D
from emspatialvae.io.star import StarFile
from emspatialvae.simulation.kinds import phantom
from emspatialvae.simulation.microscope import WHITE, Microscope, NoiseSpectrum, ctf_constants
from emspatialvae.simulation.phantom import Phantom


@dataclass(frozen=True, eq=False)
class Truth:
    """What made n images.

    Attributes
    ----------
    z
        Shape [n, d], in [-1, 1]; means nothing for junk.
    pose
        Of the n objects; means nothing for junk.
    microscope
        CTF and noise of the n images.
    is_junk
        Shape [n].
    """

    z: Floats
    pose: Pose2D
    microscope: Microscope
    is_junk: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: Any) -> "Truth":
        return Truth(self.z[rows], self.pose[rows], self.microscope[rows], self.is_junk[rows])


@dataclass(frozen=True, eq=False)
class Simulation:
    """What ``simulation.json`` says: the generator that made a stack, ready to draw with.

    Attributes
    ----------
    phantom
        The object at the height it has in the images; 0 in a stack of pure noise. None in a stack of projections of a map.
    noise_sd, noise
        S.d. of a pixel's noise in the first optics group; the spectra of all groups.
    symmetry
        Angles are defined modulo 360 / symmetry degrees.
    cramer_rao
        `CramerRao.summary`; None where there is no signal.
    """

    phantom: Phantom | None
    box: int
    pixel_size_A: float
    shift_px: float
    noise_sd: float
    noise: tuple[NoiseSpectrum, ...]
    cramer_rao: dict[str, float] | None

    @property
    def obj(self) -> Phantom:
        """The phantom; raises EmsvaeError where there is none, because a map was projected."""
        if self.phantom is None:
            raise EmsvaeError(
                "the stack holds projections of a map, of which there is no exact formula, and so no oracle"
            )
        return self.phantom

    @property
    def symmetry(self) -> int:
        """Rotational order of the object; 1 for a map."""
        return 1 if self.phantom is None else self.phantom.symmetry

    @property
    def has_oracle(self) -> bool:
        """False for a stack of pure noise and for one of projections of a map: there is no oracle and no bound."""
        return self.phantom is not None and self.has_signal

    @property
    def has_signal(self) -> bool:
        """False for a stack of pure noise."""
        return self.phantom is None or self.phantom.height > 0


def load_simulation(path: Path) -> Simulation:
    """Read ``simulation.json``; raises EmsvaeError when it is not one of ours."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        obj = None
        if facts.get("map") is None:
            obj = replace(phantom(facts.get("kind", "hinge"), facts["span_deg"]), height=facts["signal_scale"])
        noise = tuple(NoiseSpectrum(**spectrum) for spectrum in facts.get("noise", [{"sd": facts["noise_sd"]}]))
        return Simulation(
            obj,
            facts["box"],
            facts["pixel_size_A"],
            facts["shift_px"],
            facts["noise_sd"],
            noise or (WHITE,),
            facts["cramer_rao"],
        )
    except (OSError, ValueError, TypeError, KeyError, EmsvaeError) as error:
        raise EmsvaeError(
            f"{path} is not the simulation.json of a simulated stack ({error!r}); run `emsvae simulate`"
        ) from error


def read_truth(path: Path, simulation: Simulation) -> Truth:
    """All rows of ``truth.star``, in its order.

    Raises
    ------
    EmsvaeError
        A column is missing, or the file is none of ours.
    """
    block = StarFile.read(path).block("particles")
    labels = [f"emsvaeTrueZ{k + 1}" for k in range(simulation.obj.z_dim)]
    labels += ["rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnOpticsGroup"]
    has_ctf = "rlnDefocusU" in block.labels
    optional = ["emsvaeTrueJunk"] if "emsvaeTrueJunk" in block.labels else []
    ctf_labels = ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift"] if has_ctf else []
    missing = [label for label in labels + ctf_labels if label not in block.labels]
    if missing:
        raise EmsvaeError(f"{path}: no column {missing[0]}; expected the truth.star of `emsvae simulate`")
    text = block.columns(*labels, *ctf_labels, *optional)
    columns = {label: np.array(values, dtype=np.float64) for label, values in text.items()}
    z = np.stack([columns[label] for label in labels[:-4]], -1)
    angle_deg, *move_A = (columns[label] for label in labels[-4:-1])
    pose = geometry.from_relion(angle_deg, np.stack(move_A, -1), simulation.pixel_size_A)
    group = columns["rlnOpticsGroup"].astype(np.int64) - 1
    ctf = None
    if has_ctf:
        u_A, v_A, angle, phase_shift = (columns[label] for label in ctf_labels)
        ctf = CtfParams(u_A, v_A, np.radians(angle), np.radians(phase_shift), **ctf_constants(group))
    microscope = Microscope(simulation.box, simulation.pixel_size_A, group, simulation.noise, ctf)
    return Truth(z, pose, microscope, columns.get("emsvaeTrueJunk", np.zeros(len(z))).astype(bool))

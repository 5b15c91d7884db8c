"""The public functions of the package, for notebooks and scripts: ``import emspatialvae as ev``.

Each does what the command of the same name does and returns objects instead of writing files, unless it is told where to write. Angles are in radians
and in the package's own convention (`emspatialvae.imaging.geometry`: theta turns the particle, psi = -theta in STAR files).
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emspatialvae import config as configuration
from emspatialvae.config import InputConfig, Poses, RunConfig, SimulateConfig
from emspatialvae.errors import EmsvaeError
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.results.classes import Classes, read_classes
from emspatialvae.results.latents import Latents
from emspatialvae.results.run_folder import RunDir

if TYPE_CHECKING:
    import pandas as pd

    from emspatialvae.analysis.accuracy.run_views import ViewsEvaluation
    from emspatialvae.model.interface import ParticleVAE
    from emspatialvae.workflows.evaluate import RunEvaluation

Say = Callable[[str], None]
AnyPath = str | PathLike[str]


def _silent(_: str) -> None:
    """Say nothing."""


def load_particles(file: AnyPath, *, project_dir: AnyPath | None = None, **settings: Any) -> ParticleStack:
    """Read a particle file: STAR (RELION 3.0 to 5), .cs (cryoSPARC), .mrcs or pictures. Images are read when they are asked for.

    Parameters
    ----------
    file
        The particle file.
    project_dir
        Folder that the image paths in it start from [default: found].
    settings
        Other fields of `emspatialvae.config.InputConfig`, for instance ``pixel_size_A``.

    Raises
    ------
    EmsvaeError
        The file or its images cannot be used; the message says what was found, what was expected and what to do.

    Examples
    --------
    >>> import emspatialvae as ev
    >>> star = ev.simulate("hinge", out=folder / "forty", particles=40, box=24)
    >>> particles = ev.load_particles(star)
    >>> len(particles), particles.images([0, 1]).shape
    (40, (2, 24, 24))
    """
    from emspatialvae.particles import load

    return load.load_particles(_input(file, project_dir, settings))


def simulate(kind: str, *, out: AnyPath, say: Say = _silent, **settings: Any) -> Path:
    """Simulate a stack with known truth, as ``emsvae simulate`` does.

    Parameters
    ----------
    kind
        For instance "hinge", "two-hinges" or "views".
    out
        Folder to make.
    settings
        Fields of `emspatialvae.config.SimulateConfig`: ``particles=1000, box=40, snr=0.1, shift_px=2.0``.

    Returns
    -------
    The path of its ``particles.star``; ``truth.star`` lies beside it.

    Examples
    --------
    >>> import emspatialvae as ev
    >>> ev.simulate("views", out=folder / "views", particles=30, box=24).name
    'particles.star'
    """
    from emspatialvae.workflows.simulate import simulate as write

    wanted: Any = {"kind": kind, "out": Path(out), **settings}
    _check_names(SimulateConfig, wanted)
    return write(SimulateConfig(**wanted), say=say) / "particles.star"


def train(
    particles: AnyPath, *, out: AnyPath | None = None, force: bool = False, say: Say = _silent, **settings: Any
) -> "Run":
    """Train a spatial-VAE on a particle file, infer z, theta and shift of each particle, and write the run folder.

    Parameters
    ----------
    particles
        STAR or .cs file, stack, or folder of pictures.
    out
        The run folder [default: NAME_emsvae in the current folder].
    force
        Replace an older run there.
    say
        Called with each sentence for the user, for instance ``print``.
    settings
        Any field of `emspatialvae.config.InputConfig`, ``PrepareConfig``, ``ModelConfig`` or ``TrainConfig`` by its name, and ``poses``:
        ``z_dim=8, epochs=20, particle_diameter_A=180``.

    Returns
    -------
    The run, as `read_run` opens it.

    Raises
    ------
    EmsvaeError
        A setting or the particles cannot be used; an older run is then left as it was.

    Examples
    --------
    >>> import emspatialvae as ev
    >>> star = ev.simulate("hinge", out=folder / "train_sim", particles=60, box=24, snr=1.0)
    >>> run = ev.train(star, out=folder / "train_run", epochs=2, z_dim=1, hidden=16, encoder_hidden=16)
    >>> run.latents.z.shape
    (60, 1)
    """
    from emspatialvae.results.run_folder import default_out
    from emspatialvae.workflows.begin_run import start_run
    from emspatialvae.workflows.train import train_run

    config = _run_config(Path(particles), settings)
    folder = Path(out) if out is not None else default_out(Path(particles))
    run, stack = start_run(config, folder, force=force, say=say)
    train_run(run, stack, config.train, say=say)
    return read_run(folder)


def read_run(folder: AnyPath) -> "Run":
    """Open a run folder that `train` or ``emsvae train`` made.

    Raises
    ------
    RunFolderError
        It is none, or it is damaged.

    Examples
    --------
    >>> import emspatialvae as ev
    >>> ev.read_run(trained).latents.names[0]
    '000001@particles.mrcs'
    """
    return Run(Path(folder))


def evaluate(run: "Run | AnyPath", truth: AnyPath, *, oracle_particles: int = 0) -> "RunEvaluation | ViewsEvaluation":
    """Compare what a run found with the truth of a simulation; ``str(result.table())`` is the table of ``emsvae evaluate``.

    Parameters
    ----------
    run
        A run or its folder; where the truth holds views of a 3-D object, also any program's STAR file.
    truth
        ``truth.star`` of `simulate`.
    oracle_particles
        How many particles the Bayes estimator that knows the true generator looks at [default: none, it takes seconds to minutes].

    Examples
    --------
    >>> import emspatialvae as ev
    >>> ev.evaluate(trained, truth).as_dict()["n"]
    60
    """
    from emspatialvae.analysis.accuracy.run_views import evaluate_views, has_views
    from emspatialvae.workflows.evaluate import evaluate_run

    path = run.folder if isinstance(run, Run) else Path(run)
    if has_views(Path(truth)):
        return evaluate_views(path, Path(truth))
    return evaluate_run(path, Path(truth), oracle_particles)


class Run:
    """A trained run: its results, its particles and its model, each read when it is asked for.

    Attributes
    ----------
    folder
        The run folder.

    Examples
    --------
    >>> import emspatialvae as ev
    >>> run = ev.read_run(trained)
    >>> run.decode([[0.0], [1.0]]).shape
    (2, 24, 24)
    >>> run.metrics["epoch"].tolist()
    [1, 2]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run = RunDir(folder)
        self._run.check()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def config(self) -> RunConfig:
        """The settings of the run."""
        return self._run.manifest.config

    @cached_property
    def latents(self) -> Latents:
        """z, theta, shift and scores of each particle, in the order of the particle file; ``to_pandas()`` gives a table."""
        from emspatialvae.results.read_run import read_latents

        return read_latents(self.folder)[1]

    @cached_property
    def particles(self) -> ParticleStack:
        """The particles that the run was trained on."""
        from emspatialvae.results.read_run import read_particles

        return read_particles(self._run, self.latents)

    @cached_property
    def model(self) -> "ParticleVAE":
        """The trained model, a torch module on the CPU."""
        from emspatialvae.inference.infer import load_model

        return load_model(self._run)

    @property
    def metrics(self) -> "pd.DataFrame":
        """ELBO and its parts per epoch, in nats per particle."""
        import pandas as pd

        table = pd.DataFrame(self._run.metrics())
        return table.astype({"epoch": int}) if len(table) else table

    @property
    def classes(self) -> Classes | None:
        """The classes that `classify` made last; None before."""
        return read_classes(self._run)

    def decode(self, z: ArrayLike) -> NDArray[np.float32]:
        """What the model draws for latent variables, after undoing rotation and shift.

        Parameters
        ----------
        z
            Shape [n, z_dim].

        Returns
        -------
        Images [n, box, box] in the run's common frame, of the prepared box and pixel size.

        Raises
        ------
        EmsvaeError
            ``z`` has another shape.
        """
        from emspatialvae.model.render import canonical

        values = np.asarray(z, dtype=np.float32)
        d = self.model.z_dim
        if values.ndim != 2 or values.shape[1] != d:
            raise EmsvaeError(f"z has shape {list(values.shape)}; the model of {self.folder} needs [n, {d}]")
        return canonical(self.model, values)

    def infer(
        self,
        particles: AnyPath,
        *,
        project_dir: AnyPath | None = None,
        device: configuration.Device = "auto",
        say: Say = _silent,
    ) -> Latents:
        """Infer z, theta and shift of the particles of another file. Nothing is written.

        Raises
        ------
        EmsvaeError
            The particles cannot be used, or do not fit the model (field of view, pixel size, CTF).

        Examples
        --------
        >>> import emspatialvae as ev
        >>> run = ev.read_run(trained)
        >>> other = run.infer(ev.simulate("hinge", out=folder / "other", particles=20, box=24, snr=1.0))
        >>> other.z.shape
        (20, 1)
        """
        from emspatialvae.workflows.infer import inferred

        return inferred(self._run, _input(particles, project_dir, {}), device=device, say=say)[0]

    def export(
        self,
        *,
        star: AnyPath | None = None,
        cs: AnyPath | None = None,
        csv: AnyPath | None = None,
        aligned: AnyPath | None = None,
        poses: Poses | None = None,
        hold_still: AnyPath | None = None,
        force: bool = False,
        say: Say = _silent,
    ) -> None:
        """Write the results: the particle file with our columns (``star``, ``cs``), a table (``csv``), or a stack without rotation and shift (``aligned``).

        Raises
        ------
        EmsvaeError
            Nothing to write, something is there already (see ``force``), or the run has no such file.
        """
        from emspatialvae.workflows.export import export_run

        given = {"star": star, "cs": cs, "csv": csv, "aligned": aligned}
        wanted = {kind: Path(path) for kind, path in given.items() if path is not None}
        if not wanted:
            raise EmsvaeError("nothing to export; give star, cs, csv or aligned with a file name")
        mask = None if hold_still is None else Path(hold_still)
        export_run(self.folder, wanted, poses=poses, hold_still=mask, force=force, say=say)

    def select(
        self, where: str | None = None, *, out: AnyPath, force: bool = False, say: Say = _silent, **settings: Any
    ) -> Path:
        """Write some of the particles to a file of their own; rows keep their order and every byte.

        Parameters
        ----------
        where
            A condition on columns, for instance ``"junk < 0.5 and z1 > 0"``.
        out
            A .star file, or .cs where the run came from one.
        settings
            As the flags of ``emsvae select``: ``drop_duplicates_A=50, rows_from="full.star", excluded="rest.star"``.

        Returns
        -------
        ``out``.
        """
        from emspatialvae.workflows.select import select

        for name in ("rows_from", "excluded"):
            if settings.get(name) is not None:
                settings[name] = Path(settings[name])
        select(self.folder, Path(out), where=where, force=force, say=say, **settings)
        return Path(out)

    def classify(
        self, k: int | None = 20, *, method: configuration.ClassMethod | None = None, seed: int = 0, say: Say = _silent
    ) -> Classes:
        """Put the particles into ``k`` classes (None: as many as are distinct) and write them into the run folder.

        Returns
        -------
        The classes, the largest first: averages, numbers of particles, resolution.
        """
        from emspatialvae.workflows.classes import classify_run

        made = classify_run(self.folder, k, method=method, seed=seed, say=say)
        self.__dict__.pop("latents", None)  # they have classes now
        return made


def _input(file: AnyPath, project_dir: AnyPath | None, settings: dict[str, Any]) -> InputConfig:
    _check_names(InputConfig, settings)
    return InputConfig(Path(file), project_dir=None if project_dir is None else Path(project_dir), **settings)


def _run_config(particles: Path, settings: dict[str, Any]) -> RunConfig:
    """The default configuration with each setting put into the part that has a field of its name."""
    config = RunConfig(InputConfig(particles))
    parts = {part: {field.name for field in dataclasses.fields(getattr(config, part))} for part in _PARTS}
    known = {"poses", *(name for names in parts.values() for name in names)} - {"particles"}
    _refuse(set(settings) - known, known)
    changed = {
        part: dataclasses.replace(getattr(config, part), **{name: settings[name] for name in names & set(settings)})
        for part, names in parts.items()
    }
    return dataclasses.replace(config, **changed, poses=settings.get("poses", config.poses))


_PARTS = ("input", "prepare", "model", "train")


def _check_names(kind: Any, settings: dict[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(kind)}
    _refuse(set(settings) - known, known)


def _refuse(unknown: set[str], known: Iterable[str]) -> None:
    """Name a setting that does not exist, and the one that it resembles most."""
    from difflib import get_close_matches

    for name in sorted(unknown):
        near = get_close_matches(name, sorted(known), n=1, cutoff=0.0)
        raise EmsvaeError(f"there is no setting {name!r}; the nearest one is {near[0]!r}")

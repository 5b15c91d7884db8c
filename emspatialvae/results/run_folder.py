"""`RunDir`: the folder that a training run lives in.

particles_emsvae/
  config.json      settings, what was decided about the images, what was assumed
  particle_size.csv  radial profiles that the particle's diameter was read from; none where the user gave it
  metrics.csv      train and held-out ELBO per epoch, with its parts
  checkpoint.pt    state of model, optimiser and random numbers; loads with ``weights_only=True``
  latents.csv      z, theta, shift per particle with their s.d., in particle order
  particles.star   the input with our columns (and particles.cs where the input was one)
  consensus.mrc    the image that all poses refer to, in prepared pixels: to draw a mask on
  run.log          what was printed
  classes/         averages of classes and a table, once `emsvae classes` was called
  analysis/        a report to read, once `emsvae analyze` was called
  figures/         pictures: learning curve, z, manifold, reconstructions, averages, certainty of poses, spectra
  cache/           prepared images; can be deleted
"""

import csv
import io
import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emspatialvae import __version__
from emspatialvae.config import RunConfig
from emspatialvae.errors import EmsvaeError, OutputExistsError, RunFolderError
from emspatialvae.io.atomic import atomic_path
from emspatialvae.io.json_dataclass import from_json, to_json
from emspatialvae.preprocess.preparation import Preparation

if TYPE_CHECKING:
    from emspatialvae.model.interface import ImageSpec

FORMAT = 2
"""Number of the run folder's layout; any other is refused."""


RENAMED = {"mask_diameter_A": "particle_diameter_A"}
"""Settings that had another name in older runs."""


@dataclass(frozen=True)
class Manifest:
    """What ``config.json`` holds."""

    config: RunConfig
    preparation: Preparation
    images: "ImageSpec"
    n_particles: int
    assumed: tuple[str, ...]
    optics: tuple[str, ...] = ()
    """Names of the optics groups, in the order of the model's numbers."""


class RunDir:
    """A run folder that exists; `create` makes one, the constructor opens one.

    Raises
    ------
    RunFolderError
        ``path`` is not a run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise RunFolderError(
                f"{path} is not a run folder (no config.json in it); give the folder that `emsvae train` made"
            )

    @classmethod
    def create(cls, path: Path, manifest: Manifest, *, force: bool = False) -> "RunDir":
        """Make the folder and write ``config.json``; see `creating`."""
        with cls.creating(path, manifest, force=force):
            pass
        return cls(path)

    @classmethod
    @contextmanager
    def creating(cls, path: Path, manifest: Manifest, *, force: bool = False) -> "Iterator[RunDir]":
        """Yield a new run folder under a temporary name, which takes its place when the body ends well and vanishes otherwise.

        With ``force`` an older run at ``path`` is removed, but only then: a start that fails costs nothing.

        Raises
        ------
        OutputExistsError
            There is something at ``path`` and ``force`` is false.
        RunFolderError
            There is something at ``path`` that is not a run: it is not removed, whatever was asked.
        """
        cls.check_free(path, force=force)
        place = Path(path).resolve()  # a link to a scratch disk stays a link
        partial = place.with_name(f".{place.name[:60]}.{secrets.token_hex(4)}")
        replaced = partial.with_name(f"{partial.name}.old")
        if place.exists() and not any(place.iterdir()):
            partial = place  # an empty folder may be a mount point, or the one the user is in
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmsvaeError(f"{path} cannot be made ({error.strerror}); choose another --out") from error
        try:
            content = {"format": FORMAT, "emspatialvae": __version__, **to_json(manifest)}
            with atomic_path(partial / "config.json") as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n")
            yield cls(partial)
            if partial != place:
                if place.exists():
                    place.rename(replaced)
                partial.rename(place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if partial == place:
                place.mkdir(exist_ok=True)
            raise
        shutil.rmtree(replaced, ignore_errors=True)

    @staticmethod
    def check_free(path: Path, *, force: bool) -> None:
        """Raise as `create` would, without touching anything: to fail before hours of work, not after."""
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
        if not force:
            raise OutputExistsError(path)
        # Many programs keep a config.json. One of ours is known by our name in it, even where it is cut short.
        config = path / "config.json"
        if not (config.is_file() and f'"{__name__.partition(".")[0]}"' in config.read_text(errors="replace")):
            raise RunFolderError(f"{path} is not a run folder, so --force does not remove it; choose another --out")

    @property
    def manifest(self) -> Manifest:
        """The settings of the run.

        Raises
        ------
        RunFolderError
            ``config.json`` is damaged, or of a newer or older version.
        """
        from emspatialvae.model.interface import ImageSpec

        file = self.path / "config.json"
        try:
            content = json.loads(file.read_text())
        except (ValueError, OSError) as error:
            raise RunFolderError(f"{file} is damaged ({error}); train again") from None
        if not (isinstance(content, dict) and isinstance(content.get("format"), int)):
            raise RunFolderError(f"{file} is damaged (it has no format number); train again")
        if content["format"] > FORMAT:
            raise RunFolderError(
                f"{file} has format {content['format']}, written by emspatialvae {content.get('emspatialvae')}; "
                f"this is {__version__} and reads formats up to {FORMAT}: update it"
            )
        if content["format"] < FORMAT:
            raise RunFolderError(
                f"{file} has format {content['format']}, of an older version whose models are not read any more; train again"
            )
        try:
            return Manifest(
                config=from_json(RunConfig, _renamed(content["config"])),
                preparation=from_json(Preparation, content["preparation"]),
                images=from_json(ImageSpec, content["images"]),
                n_particles=content["n_particles"],
                assumed=tuple(content["assumed"]),
                optics=tuple(content.get("optics", ())),
            )
        except (KeyError, TypeError, AttributeError, EmsvaeError) as error:
            raise RunFolderError(f"{file} is damaged ({error}); train again") from None

    def record_z_dim(self, z_dim: int) -> None:
        """Write the number of latent coordinates that training found into ``config.json``, where nobody had given one."""
        file = self.path / "config.json"
        content = json.loads(file.read_text())
        if content["config"]["model"].get("z_dim") is None:
            content["config"]["model"]["z_dim"] = z_dim
            with atomic_path(file, overwrite=True) as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n")

    @property
    def figures(self) -> Path:
        """Folder of the pictures."""
        return self.path / "figures"

    def forget_derived(self) -> list[Path]:
        """Remove what was made from results that are no more: ``classes/`` and ``analysis/``; returns those that were there."""
        there = [folder for folder in (self.path / "classes", self.path / "analysis") if folder.is_dir()]
        for folder in there:
            shutil.rmtree(folder)
        return there

    @property
    def star(self) -> Path:
        """The input with our columns."""
        return self.path / "particles.star"

    @property
    def consensus(self) -> Path:
        """The image that all poses refer to."""
        return self.path / "consensus.mrc"

    @property
    def latents(self) -> Path:
        """The table of results."""
        return self.path / "latents.csv"

    def save_profiles(self, columns: dict[str, list[float]]) -> None:
        """Write ``particle_size.csv``: a row per ring, ``radius_A`` and the profiles there."""
        with (
            atomic_path(self.path / "particle_size.csv", overwrite=True) as temporary,
            temporary.open("w", newline="") as stream,
        ):
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows([f"{value:.6g}" for value in row] for row in zip(*columns.values(), strict=True))

    def profiles(self) -> dict[str, list[float]]:
        """What `save_profiles` wrote; empty where there is none."""
        file = self.path / "particle_size.csv"
        if not file.is_file():
            return {}
        with file.open(newline="") as stream:
            names, *rows = csv.reader(stream)
        return {
            name: [float(cell) for cell in cells] for name, cells in zip(names, zip(*rows, strict=True), strict=True)
        }

    def log(self, message: str) -> None:
        """Append a line to ``run.log``, with the time."""
        with (self.path / "run.log").open("a") as stream:
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}\n")

    # ---------------------------------------------------------------------------------------------------- metrics

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add the row of one epoch to ``metrics.csv``."""
        file = self.path / "metrics.csv"
        new = not file.exists()
        with file.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def metrics(self) -> list[dict[str, float]]:
        """Rows of ``metrics.csv``; empty cells are NaN."""
        file = self.path / "metrics.csv"
        if not file.exists():
            return []
        with file.open(newline="") as stream:
            return [{k: float(v) if v else float("nan") for k, v in row.items()} for row in csv.DictReader(stream)]

    def forget_metrics_after(self, epoch: int) -> None:
        """Drop the rows of epochs that a resumed run will do again."""
        file = self.path / "metrics.csv"
        if not file.exists():
            return
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        with atomic_path(file, overwrite=True) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["epoch"]) <= epoch)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write ``checkpoint.pt`` whole or not at all; ``state`` holds tensors, numbers, strings, lists and dicts only."""
        import torch

        # Through memory: on a full disk torch raises a RuntimeError about positions, a plain write says what is the matter.
        whole = io.BytesIO()
        torch.save({"format": FORMAT, **state}, whole)
        with atomic_path(self.path / "checkpoint.pt", overwrite=True) as temporary:
            temporary.write_bytes(whole.getbuffer())

    def load_checkpoint(self) -> dict[str, Any]:
        """What `save_checkpoint` wrote.

        Raises
        ------
        RunFolderError
            There is none, or it is damaged.
        """
        import torch

        file = self.path / "checkpoint.pt"
        if not file.is_file():
            raise RunFolderError(
                f"{self.path} holds no checkpoint.pt yet; start it anew with --force instead of --resume"
            )
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises anything from EOFError to UnpicklingError here
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunFolderError(f"{file} is damaged ({reason[:120]}); train again") from error
        if not (isinstance(state, dict) and {"format", "model"} <= state.keys()):
            raise RunFolderError(f"{file} is a checkpoint of another program; train again")
        return state


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    """Settings under today's names, where an older version wrote others."""
    return {
        part: {RENAMED.get(key, key): value for key, value in values.items()} if isinstance(values, dict) else values
        for part, values in config.items()
    }


def load_state(module: Any, state: dict[str, Any], where: Path) -> None:
    """Put a state dict into a module.

    Raises
    ------
    RunFolderError
        The names or shapes differ: the checkpoint belongs to another model.
    """
    try:
        module.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        found = " ".join(str(error).split())
        raise RunFolderError(
            f"{where / 'checkpoint.pt'} belongs to another model than config.json says ({found[:160]})"
        ) from None


def default_out(particles: Path) -> Path:
    """``particles.star`` in any folder is trained into ``particles_emsvae`` in the current one."""
    return Path(f"{particles.stem}_emsvae")

"""`RunDir`: the folder that a training run lives in.

particles_emsvae/
  config.json      settings, what was decided about the images, what was assumed
  input.json.gz    which particles in which order, and marks of their stacks: what moves is followed, what changed is refused
  particle_size.csv  radial profiles that the particle's diameter was read from; none where the user gave it
  metrics.csv      train and held-out ELBO per epoch, with its parts
  checkpoint.pt    state of model, optimiser and random numbers; loads with ``weights_only=True``
  latents.csv      z, theta, shift per particle with their s.d., in particle order
  particles.star   the input with our columns (and particles.cs where the input was one)
  results.json     the state of the model that the results belong to
  consensus.mrc    the image that all poses refer to, in prepared pixels: to draw a mask on
  run.log          what was printed
  lock.json        who is at work in the folder, while somebody is
  classes/         averages of classes and a table, once `emsvae classes` was called
  analysis/        a report to read, once `emsvae analyze` was called
  watch/           results of a growing particle file, once `emsvae watch` was called
  figures/         pictures: learning curve, z, manifold, reconstructions, averages, certainty of poses, spectra
  cache/           prepared images; can be deleted
"""

import csv
import gzip
import io
import json
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from emspatialvae import __version__
from emspatialvae.config import RunConfig
from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.io import leftovers, lock, switch
from emspatialvae.io.atomic import atomic_path, place_new, replace_folder, sync_tree
from emspatialvae.io.fingerprint import Fingerprint
from emspatialvae.io.json_dataclass import from_json, is_list, is_object, to_json
from emspatialvae.preprocess.preparation import Preparation
from emspatialvae.results import own_files
from emspatialvae.results.identity import Identity

if TYPE_CHECKING:
    from emspatialvae.model.image_spec import ImageSpec

FORMAT = 2
"""Number of the run folder's layout; any other is refused."""


LARGEST = {
    "preparation.box": 4096,
    "images.channels": 256,
    "config.model.z_dim": 1024,
    "config.model.hidden": 1 << 15,
    "config.model.layers": 64,
    "config.model.encoder_hidden": 1 << 15,
    "config.model.encoder_layers": 64,
    "config.train.batch_size": 1 << 20,
    "config.train.infer_turns": 4096,
}
"""Whole numbers in ``config.json`` that would take all memory if they were larger: nobody has trained with such."""


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
        self._known: tuple[tuple[Path, int, int, int], Manifest] | None = None
        switch.finish(self.path)
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
    def creating(
        cls, path: Path, manifest: Manifest, *, force: bool = False, keep_lock: bool = False
    ) -> "Generator[RunDir, None, None]":
        """Yield a new run folder under a temporary name, which takes its place when the body ends well and vanishes otherwise.

        With ``force`` an older run at ``path`` is removed, but only then: a start that fails costs nothing. Meanwhile both are
        locked (`emspatialvae.io.lock`); with ``keep_lock`` the new one stays so.

        Raises
        ------
        OutputExistsError
            There is something at ``path`` and ``force`` is false, now or when the body has ended.
        RunFolderError
            There is something at ``path`` that is not a run, that is somebody's own, that is write-protected or in use: it is not
            removed, whatever was asked.
        """
        place = Path(os.path.realpath(path))  # a link to a scratch disk stays a link
        if place.parent.is_dir():
            leftovers.sweep(place.parent)
        cls.check_free(path, force=force)
        replaces = place.exists() and not own_files.is_empty(place)
        # An empty folder may be a mount point, or the one the user is in: the run is made in it.
        partial = place if place.exists() and not replaces else leftovers.temporary_beside(place, ending="")
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmsvaeError(f"{path} cannot be made ({error.strerror}); choose another --out") from error
        try:
            lock.acquire(partial)
            if replaces:
                stale = lock.acquire(place)
                if stale is not None:
                    leftovers.note(stale)
                cls.check_free(path, force=force)
            content = {"format": FORMAT, "emspatialvae": __version__, **to_json(manifest)}
            with atomic_path(partial / "config.json") as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n")
            yield cls(partial)
            sync_tree(partial)
            if replaces:
                replace_folder(partial, place)
            elif partial != place:
                place_new(partial, place)
            if partial != place:
                lock.moved(partial, place)
        except BaseException:
            own_files.take_back(partial, place)
            if replaces:
                lock.release(place)
            raise
        if not keep_lock:
            lock.release(place)

    @staticmethod
    def check_free(path: Path, *, force: bool) -> None:
        """Raise as `create` would, without touching anything: to fail before hours of work, not after."""
        own_files.check_free(path, force=force)

    @property
    def manifest(self) -> Manifest:
        """The settings of the run; read again where the file has changed.

        Raises
        ------
        RunFolderError
            ``config.json`` is damaged, or of a newer or older version.
        """
        file = self.path / "config.json"
        try:
            status = file.stat()
        except OSError as error:
            raise RunFolderError(f"{file} is damaged ({error}); train again") from None
        stamp = file, status.st_ino, status.st_mtime_ns, status.st_size
        if self._known is None or self._known[0] != stamp:
            self._known = stamp, self._read_manifest(file)
        return self._known[1]

    def check(self) -> None:
        """Refuse a run whose settings cannot be read; see `manifest`."""
        self._read_manifest(self.path / "config.json")

    def _read_manifest(self, file: Path) -> Manifest:
        from emspatialvae.model.image_spec import ImageSpec

        try:
            content: Any = json.loads(file.read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            raise RunFolderError(f"{file} is damaged ({error}); train again") from None
        if not (is_object(content) and type(content.get("format")) is int):
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
            manifest = Manifest(
                config=from_json(RunConfig, _renamed(content["config"])),
                preparation=from_json(Preparation, content["preparation"]),
                images=from_json(ImageSpec, content["images"]),
                n_particles=_whole(content["n_particles"], "n_particles", 1 << 40),
                assumed=_texts(content["assumed"], "assumed"),
                optics=_texts(content.get("optics", []), "optics"),
            )
            for name, largest in LARGEST.items():
                value: Any = manifest
                for part in name.split("."):
                    value = getattr(value, part)
                if value is not None:
                    _whole(value, name, largest)
        except KeyError as error:
            raise RunFolderError(f"{file} is damaged (it has no {error}); train again") from None
        except (TypeError, AttributeError, RecursionError, EmsvaeError) as error:
            raise RunFolderError(f"{file} is damaged ({error}); train again") from None
        return manifest

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

    @property
    def derived(self) -> list[Path]:
        """What was made from the results and is there: ``classes/``, ``analysis/``; they go when the results do."""
        return [folder for folder in (self.path / "classes", self.path / "analysis") if os.path.lexists(folder)]

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
        with (self.path / "run.log").open("a", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}\n")

    def saying(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """A function that tells the user what `say` would, and writes it into ``run.log`` as well."""

        def tell(message: str) -> None:
            self.log(message.strip())
            say(message)

        return tell

    # ------------------------------------------------------------------------------------------- what belongs together

    def save_identity(self, identity: Identity) -> None:
        """Write ``input.json.gz``: which particles the run is about."""
        with atomic_path(self.path / "input.json.gz", overwrite=True) as temporary:
            temporary.write_bytes(gzip.compress(json.dumps(asdict(identity)).encode(), 1, mtime=0))

    def identity(self) -> Identity | None:
        """What `save_identity` wrote; None of a run of an older version, which kept none.

        Raises
        ------
        RunFolderError
            It is damaged.
        """
        file = self.path / "input.json.gz"
        if not file.is_file():
            return None
        try:
            return Identity.from_json(json.loads(gzip.decompress(file.read_bytes())))
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunFolderError(f"{file} is damaged ({error}); train again") from None

    def save_state_of_results(self, folder: Path) -> None:
        """Write ``results.json`` into a folder: which state of the model the results beside it belong to."""
        state = {"epochs": len(self.metrics()), "checkpoint": asdict(Fingerprint.of(self.path / "checkpoint.pt"))}
        with atomic_path(folder / "results.json") as temporary:
            temporary.write_text(json.dumps(state) + "\n")

    def behind(self) -> str | None:
        """A sentence where the results are those of an earlier state of the model: its training went on and was killed.

        None where they belong together, or where nothing is known about it (no results yet, a run of an older version).
        """
        file, checkpoint = self.path / "results.json", self.path / "checkpoint.pt"
        if not (file.is_file() and checkpoint.is_file()):
            return None
        try:
            state = json.loads(file.read_text())
            if state["checkpoint"] == asdict(Fingerprint.of(checkpoint)):
                return None
            return (
                f"the results in {self.path} are those of {int(state['epochs'])} epochs, and its model has gone on since; finish it with "
                "`emsvae train ... --resume`"
            )
        except (ValueError, TypeError, KeyError) as error:
            raise RunFolderError(
                f"{file} is damaged ({error}); write it again with `emsvae train ... --resume`"
            ) from None

    def check_results_belong(self) -> None:
        """Refuse to use model and results together where `behind` says that they do not belong together."""
        behind = self.behind()
        if behind is not None:
            raise RunFolderError(behind)

    # ---------------------------------------------------------------------------------------------------- metrics

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add the row of one epoch to ``metrics.csv``; a full disk leaves the file as it was."""
        rows = self._metrics_rows()
        if rows and not row.keys() <= rows[0].keys():  # an older version wrote one column more
            raise self._damaged_metrics(f"columns {', '.join(rows[0])}"[:100])
        self._write_metrics([*rows, row])

    def metrics(self) -> list[dict[str, float]]:
        """Rows of ``metrics.csv``; empty cells are NaN.

        Raises
        ------
        RunFolderError
            It is damaged.
        """
        rows = self._metrics_rows()
        if rows and not {"train_elbo", "test_elbo"} <= rows[0].keys():
            raise self._damaged_metrics(f"columns {', '.join(rows[0])}"[:100])
        try:
            return [{k: float(v) if v else float("nan") for k, v in row.items()} for row in rows]
        except ValueError as error:
            raise self._damaged_metrics(str(error)) from None

    def forget_metrics_after(self, epoch: int) -> None:
        """Drop the rows of epochs that a resumed run will do again."""
        rows = self._metrics_rows()
        if not self.metrics():
            return
        try:
            self._write_metrics([row for row in rows if int(row["epoch"]) <= epoch] or rows[:0], list(rows[0]))
        except ValueError as error:
            raise self._damaged_metrics(str(error)) from None

    def _metrics_rows(self) -> list[dict[str, Any]]:
        file = self.path / "metrics.csv"
        if not file.exists():
            return []
        try:
            with file.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                rows = list(reader)
        except (ValueError, csv.Error) as error:
            raise self._damaged_metrics(str(error)) from None
        for row in rows:
            if "epoch" not in row or None in row or None in row.values():
                raise self._damaged_metrics(f"a row of {sum(value is not None for value in row.values())} numbers")
        return rows

    def _write_metrics(self, rows: list[dict[str, Any]], names: list[str] | None = None) -> None:
        with (
            atomic_path(self.path / "metrics.csv", overwrite=True) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, names or list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def _damaged_metrics(self, found: str) -> RunFolderError:
        return RunFolderError(
            f"{self.path / 'metrics.csv'} is damaged ({found}); remove it: the learning curve so far is lost then, nothing else"
        )

    # ------------------------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write ``checkpoint.pt`` whole or not at all; ``state`` holds tensors, numbers, strings, lists and dicts only.

        Tensors are written as those of the CPU, whatever device they lie on, so that any machine can go on with the run.
        """
        import torch

        # Through memory: on a full disk torch raises a RuntimeError about positions, a plain write says what is the matter.
        whole = io.BytesIO()
        torch.save({"format": FORMAT, **_on_cpu(state)}, whole)
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
                f"{self.path} holds no checkpoint.pt: "
                + (
                    "its training has not begun; `emsvae train ... --resume` begins it"
                    if own_files.never_began(self.path)
                    else "it is gone; train anew with --force"
                )
            )
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises anything from EOFError to UnpicklingError here
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunFolderError(f"{file} is damaged ({reason[:120]}); train again") from error
        if not (is_object(state) and {"format", "model"} <= state.keys()):
            raise RunFolderError(f"{file} is a checkpoint of another program; train again")
        if state["format"] != FORMAT:
            raise RunFolderError(f"{file} has format {state['format']}, expected {FORMAT}; train again")
        model = state["model"]
        if not (is_object(model) and all(isinstance(value, torch.Tensor) for value in model.values())):
            raise RunFolderError(f"{file} is damaged (its model is not made of tensors); train again")
        return state


def _whole(value: Any, name: str, largest: int) -> int:
    if type(value) is not int or not 1 <= value <= largest:
        raise EmsvaeError(f"{name} is {str(value)[:40]}, expected a whole number from 1 to {largest}")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not (is_list(value) and all(isinstance(text, str) for text in value)):
        raise EmsvaeError(f"{name} is not a list of texts")
    return tuple(value)


def _renamed(config: Any) -> dict[str, Any]:
    """Settings under today's names, where an older version wrote others."""
    if not is_object(config):
        raise EmsvaeError("config is not an object of settings")
    return {
        part: {RENAMED.get(key, key): value for key, value in values.items()} if is_object(values) else values
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


def _on_cpu(value: Any) -> Any:
    """The same with all its tensors on the CPU."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if is_object(value):
        return {key: _on_cpu(inside) for key, inside in value.items()}
    if is_list(value):
        return [_on_cpu(inside) for inside in value]
    if isinstance(value, tuple):
        return tuple(map(_on_cpu, cast(tuple[Any, ...], value)))
    return value

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
import json
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.io import leftovers, lock, switch
from emspatialvae.io.atomic import atomic_path, place_new, replace_folder, sync_tree
from emspatialvae.io.fingerprint import Fingerprint
from emspatialvae.results import checkpoint, own_files
from emspatialvae.results.identity import Identity
from emspatialvae.results.manifest import Manifest, read_manifest, record_z_dim, write_manifest
from emspatialvae.results.metrics import MetricsFile


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
        self._metrics = MetricsFile(self.path / "metrics.csv")
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
            write_manifest(partial / "config.json", manifest)
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
            self._known = stamp, read_manifest(file)
        return self._known[1]

    def check(self) -> None:
        """Refuse a run whose settings cannot be read; see `manifest`."""
        read_manifest(self.path / "config.json")

    def record_z_dim(self, z_dim: int) -> None:
        """Write into ``config.json`` how many latent coordinates the results have."""
        record_z_dim(self.path / "config.json", z_dim)

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

    # ------------------------------------------------------------------------------------- what the training leaves

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add the row of one epoch to ``metrics.csv``; a full disk leaves the file as it was."""
        self._metrics.append(row)

    def metrics(self) -> list[dict[str, float]]:
        """Rows of ``metrics.csv``; see `MetricsFile.read`."""
        return self._metrics.read()

    def forget_metrics_after(self, epoch: int) -> None:
        """Drop the rows of epochs that a resumed run will do again."""
        self._metrics.forget_after(epoch)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write ``checkpoint.pt``; see `checkpoint.save_checkpoint`."""
        checkpoint.save_checkpoint(self.path / "checkpoint.pt", state)

    def load_checkpoint(self) -> dict[str, Any]:
        """What `save_checkpoint` wrote; see `checkpoint.load_checkpoint`."""
        return checkpoint.load_checkpoint(self.path / "checkpoint.pt")


def default_out(particles: Path) -> Path:
    """``particles.star`` in any folder is trained into ``particles_emsvae`` in the current one."""
    return Path(f"{particles.stem}_emsvae")

"""``emsvae watch``: what a growing STAR file adds is inferred as it comes."""

import dataclasses
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emspatialvae.config import Device, InputConfig, Poses
from emspatialvae.errors import EmsvaeError, ParticleFileError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.inference.infer import judged
from emspatialvae.io.atomic import atomic_folder
from emspatialvae.io.fingerprint import Fingerprint
from emspatialvae.jobs import interrupt
from emspatialvae.jobs.interrupt import Ended
from emspatialvae.particles.load import followed, load_particles, open_stacks_of
from emspatialvae.particles.stack import ParticleStack
from emspatialvae.results import export
from emspatialvae.results.identity import keys_of
from emspatialvae.results.latents import Latents, read_csv
from emspatialvae.results.read_run import latents_of
from emspatialvae.results.run_folder import RunDir
from emspatialvae.workflows.begin_run import start_run
from emspatialvae.workflows.extend import extended_run, why_not
from emspatialvae.workflows.infer import inferred_stack
from emspatialvae.workflows.progress import Say
from emspatialvae.workflows.train import train_run

TAIL = 0.05
"""Of the run's own particles, the worst explained: what lies beyond them is badly explained."""
MANY_TIMES, ENOUGH = 3.0, 50
"""So many times that share, among at least so many new particles, and the model does not know what came in."""
STATE = "watch.json"
MARKS = "ctf.npy"
"""A number for each row, which is another one where the CTF is another one."""


@dataclass(frozen=True)
class Look:
    """What a look has found."""

    particles: int
    new: int
    advice: str | None
    """A sentence where training should go on."""


class Watch:
    """A growing STAR file, a run, and the folder with what the run's model says of it.

    Raises
    ------
    EmsvaeError
        The particles are no STAR file, or the folder holds something else.
    """

    def __init__(
        self,
        run: RunDir,
        source: InputConfig,
        out: Path | None = None,
        *,
        poses: Poses = "auto",
        device: Device = "auto",
        say: Say = print,
    ) -> None:
        if source.particles.suffix.lower() != ".star":
            raise EmsvaeError(f"{source.particles}: only STAR files grow; for any other use `emsvae infer`")
        if source.limit is not None:
            raise EmsvaeError("--limit and a file that grows do not go together; leave it out")
        self.run, self.source, self.say = run, source, say
        self.poses: Poses = poses
        self.device: Device = device
        self.out = out or run.path / "watch"
        if os.path.lexists(self.out):
            ours = self.out.is_dir() and ((self.out / STATE).is_file() or not any(self.out.iterdir()))
            if not ours:
                raise EmsvaeError(
                    f"{self.out} was not made by `emsvae watch`, which would replace it; choose another --out"
                )
        if source.particles.absolute().is_relative_to(self.out.absolute()):
            raise EmsvaeError(f"{source.particles} lies in {self.out}, which would be replaced; choose another --out")
        self.last: tuple[int, int] | None = None

    def look(self) -> Look:
        """Infer what is new and write it; nothing is written where nothing is.

        Raises
        ------
        ParticleFileError
            The file, or a stack that it names, cannot be read now: perhaps it is being written.
        """
        # A copy, because rows are copied from the file when the results are written, and it may grow in between.
        with tempfile.TemporaryDirectory(prefix="emsvae_watch_") as copies:
            return self._look(*self._particles(Path(copies)))

    def _look(self, stack: ParticleStack, settled: bool) -> Look:
        model, known = asdict(Fingerprint.of(self.run.path / "checkpoint.pt")), None
        state = self._state()
        if state.get("checkpoint") == model and state.get("poses") == self.poses:
            preparation = self.run.manifest.preparation
            known = read_csv(self.out / "latents.csv", self.run.manifest.z_dim, preparation.pixel_size_A)
        row_of = {} if known is None else {key: row for row, key in enumerate(keys_of(known.names))}
        keys = keys_of(stack.names)
        here = np.array([row_of.get(key, -1) for key in keys], np.int64)
        gone = len(row_of) - int((here >= 0).sum())
        marks = _ctf_marks(stack)
        if known is not None:  # a CTF that was refined in the meantime makes another image of the same name
            here[here >= 0] = np.where(self._marks(len(known))[here] == marks, here, -1)[here >= 0]
        if gone and not settled:
            raise ParticleFileError(f"{stack.source}: {gone:,} particles are gone; perhaps it is being written anew")
        new = np.flatnonzero(here < 0)
        if not len(new) and not gone and known is not None and len(known) == len(stack):
            return Look(len(stack), 0, None)
        parts = [] if known is None else [known]
        if len(new):
            parts.append(inferred_stack(self.run, stack.subset(new), device=self.device, say=self.say))
        here[new] = (0 if known is None else len(known)) + np.arange(len(new))
        latents = judged(dataclasses.replace(_joined(parts)[here], names=stack.names))
        with atomic_folder(self.out) as folder:
            export.write(latents, stack, folder / "latents.csv")
            poses = "keep" if self.run.manifest.config.model.poses_fixed and self.poses == "auto" else self.poses
            export.write(latents, stack, folder / "particles.star", poses=poses)
            np.save(folder / MARKS, marks)
            (folder / STATE).write_text(json.dumps({"checkpoint": model, "poses": self.poses}) + "\n")
        return Look(len(stack), len(new), self._advice(latents, keys))

    def _particles(self, copies: Path) -> tuple[ParticleStack, bool]:
        """The particles as of now, and whether the file is as it was at the last look; a last line without an end is left out until then."""
        file = self.source.particles
        try:
            content, status = file.read_bytes(), file.stat()
        except OSError as error:
            raise ParticleFileError(f"{file}: {error.strerror}") from None
        settled, self.last = self.last == (status.st_size, status.st_mtime_ns), (status.st_size, status.st_mtime_ns)
        if not settled:
            content = content[: content.rfind(b"\n") + 1]
        copy = copies / file.name
        copy.write_bytes(content)
        read = dataclasses.replace(self.source, particles=copy)
        try:
            table = load_particles(read, open_stacks=False)
        except ParticleFileError as error:  # the copy is nobody's business, and has another name at each look
            raise ParticleFileError(str(error).replace(str(copy), str(file))) from None
        # Stacks are looked for around the file itself.
        return open_stacks_of(dataclasses.replace(table, source=file), self.source), settled

    def _state(self) -> dict[str, Any]:
        file = self.out / STATE
        if not file.is_file():
            return {}
        try:
            return dict(json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise EmsvaeError(f"{file} is damaged ({error}); remove {self.out}, and all is inferred anew") from None

    def _marks(self, n: int) -> NDArray[np.uint64]:
        """Of the CTF of each of the n particles that are known."""
        file = self.out / MARKS
        try:
            marks = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise EmsvaeError(f"{file} is damaged ({error}); remove {self.out}, and all is inferred anew") from None
        if marks.shape != (n,):
            raise EmsvaeError(
                f"{file} has not a number for each of {n:,} rows; remove {self.out}, and all is inferred anew"
            )
        return marks

    def _advice(self, latents: Latents, keys: list[tuple[str, int]]) -> str | None:
        """Whether the run's model still knows what comes in."""
        own = latents_of(self.run)
        trained = set(keys_of(own.names))
        new = np.array([key not in trained for key in keys], np.bool_) & latents.used
        count = int(new.sum())
        worse, usual = _badness(latents)[new], _badness(own)[own.used]
        bad = float((worse > np.quantile(usual, 1 - TAIL)).mean()) if count and len(usual) else 0.0
        if count >= ENOUGH and bad > MANY_TIMES * TAIL:
            return (
                f"{100 * bad:.0f} % of the {count:,} new particles are explained as badly as {100 * TAIL:.0f} % of those that {self.run.path} "
                "was trained on: training should go on"
            )
        if count > len(own):
            return f"{count:,} particles are new, {self.run.path} was trained on {len(own):,}: training should go on"
        return None


def watch(watched: Watch, *, every_s: float = 30.0, once: bool = False, retrain: bool = False) -> int:
    """Look again and again until Ctrl-C, which is how it ends; returns the exit code."""
    said, say = "", watched.say
    try:
        while True:
            try:
                found = watched.look()
            except ParticleFileError as error:
                if once:
                    raise
                if str(error) != said:
                    say(f"waiting: {error}")
                said = str(error)
            else:
                if found.new or once:
                    say(f"{found.particles:,} particles, {found.new:,} new: {watched.out}")
                if found.advice is not None and found.advice != said:
                    say(found.advice + ("" if retrain else " (--retrain does it)"))
                said = found.advice or ""
                if found.advice is not None and retrain and not _retrained(watched):
                    return interrupt.exit_code()
            if once:
                return 0
            time.sleep(every_s)
    except KeyboardInterrupt as ended:
        if isinstance(ended, Ended):
            raise
        say(f"ended; the results so far are in {watched.out}")
        return 0


def _retrained(watched: Watch) -> bool:
    """Go on training on all particles, beside the run, and watch with that from here on; False where that was interrupted."""
    place = watched.run.path.absolute()
    stem, number = place.name.rstrip("0123456789").removesuffix("_"), 2
    while os.path.lexists(place.with_name(f"{stem}_{number}")):
        number += 1
    out = place.with_name(f"{stem}_{number}")
    old = watched.run
    settings = old.manifest.config.train
    if watched.device != "auto":
        settings = dataclasses.replace(settings, device=watched.device)
    source = followed(watched.source)
    stack = load_particles(source)
    why = why_not(old, stack)
    if why is None:
        watched.say(f"training goes on from the weights of {old.path}, on all {len(stack):,} particles: {out}")
        known = read_csv(watched.out / "latents.csv", old.manifest.z_dim, old.manifest.preparation.pixel_size_A)
        run = extended_run(old, source, stack, known, out, say=watched.say)
        settings = dataclasses.replace(settings, epochs=run.manifest.config.train.epochs)
    else:
        watched.say(f"{why}: training with the settings of {old.path} from the beginning, on all particles: {out}")
        config = dataclasses.replace(old.manifest.config, input=source, train=settings)
        run, stack = start_run(config, out, say=watched.say)
    finished = train_run(run, stack, settings, resume=why is None, say=watched.say)
    if watched.out == watched.run.path / "watch":
        watched.out = run.path / "watch"
    watched.run, watched.last = run, None
    return finished


def _ctf_marks(stack: ParticleStack) -> NDArray[np.uint64]:
    """A number for each particle, which is another one where the CTF is another one; [n]."""
    if stack.ctf is None:
        return np.zeros(len(stack), np.uint64)
    return np.asarray(pd.util.hash_pandas_object(pd.DataFrame(vars(stack.ctf)), index=False), np.uint64)


def _badness(latents: Latents) -> Floats:
    """[n]; higher where the model explains less of an image."""
    return -latents.log_likelihood if latents.misfit is None else latents.misfit


def _joined(parts: list[Latents]) -> Latents:
    """One after the other; what is not known of all is known of none."""
    first, together = parts[0], {}
    for field in dataclasses.fields(Latents):
        values = [getattr(part, field.name) for part in parts]
        if field.name == "pixel_size_A" or any(value is None for value in values):
            together[field.name] = values[0] if field.name == "pixel_size_A" else None
        elif field.name in ("pose", "class_pose"):
            together[field.name] = type(first.pose)(
                np.concatenate([value.theta_rad for value in values]),
                np.concatenate([value.shift_px for value in values]),
            )
        else:
            together[field.name] = np.concatenate(values)
    return Latents(**together)

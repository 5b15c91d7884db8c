"""What lies in a run folder: which files are the run's own, which are somebody's, and what may be removed."""

import fnmatch
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from emspatialvae.errors import EmsvaeError, OutputExistsError, RunFolderError
from emspatialvae.io import leftovers, lock, switch

OWN = (
    *(
        "config.json",
        "input.json.gz",
        "particle_size.csv",
        "metrics.csv",
        "checkpoint.pt",
        "latents.csv",
        "results.json",
    ),
    *("particles.star", "particles.cs", "consensus.mrc", "run.log", lock.NAME),
    *(f"classes/{name}" for name in ("classes.mrcs", "classes.csv", "run_model.star", "run_data.star")),
    *(f"watch/{name}" for name in ("particles.star", "latents.csv", "watch.json")),
    *("analysis/report.html", "analysis/figures/*.png"),
    *(f"figures/{name}.png" for name in ("learning_curve", "z_scatter", "reconstructions", "manifold")),
    *(f"figures/{name}.png" for name in ("particle_size", "averages", "poses", "spectra")),
    *("selections.npz", "umap.npz", "located.json"),  # of the napari plugin
    *(f"cache/{kind}_*.npy" for kind in ("images", "usable", "ctf", "sums")),
)
"""All that our commands write into a run folder; anything else in it is somebody's own, and is never removed."""


def check_free(path: Path, *, force: bool) -> None:
    """Refuse a place for a new run, without touching anything: to fail before hours of work, not after.

    Raises
    ------
    OutputExistsError
        There is something and ``force`` is false (a run that was killed before it began to learn may be replaced without).
    RunFolderError
        What is there is not a run, is in use, is write-protected, or holds files that are somebody's own.
    """
    place = Path(os.path.realpath(path))
    if not os.path.lexists(place) or (place.is_dir() and is_empty(place)):
        if place.is_dir():
            _check_unused(place, path)
        return
    ours = _is_run(place)
    if not force and not (ours and never_began(place)):
        raise OutputExistsError(path)
    if not ours:
        raise RunFolderError(f"{path} is not a run folder, so --force does not remove it; choose another --out")
    _check_unused(place, path)
    strange = foreign(place)
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise RunFolderError(
            f"{path} holds what emsvae did not write there: {', '.join(strange[:3])}{more}; --force would remove it: move it "
            "elsewhere, or choose another --out"
        )
    protected = _protected(place)
    if protected is not None:
        raise RunFolderError(
            f"{protected} is write-protected, so --force does not remove {path}; choose another --out, or chmod -R u+w {path}"
        )


def foreign(folder: Path) -> list[str]:
    """What lies in a run folder and none of our commands has written, sorted; folders that hold nothing of ours end in a slash."""
    found: list[str] = []
    for at, folders, files in os.walk(folder):
        here = PurePosixPath(Path(at).relative_to(folder).as_posix())
        if here.parts[:1] == (switch.NAME,) or any(map(leftovers.is_temporary, here.parts)):
            folders.clear()
            continue
        for name in list(folders):
            inside = here / name
            if not (_is_ours(inside / "*") or name == switch.NAME or leftovers.is_temporary(name)):
                folders.remove(name)
                found.append(f"{inside}/")
        found += [str(here / name) for name in files if not (_is_ours(here / name) or leftovers.is_temporary(name))]
    return sorted(found)


def check_not_own(outputs: Iterable[Path], allowed: Iterable[Path] = ()) -> None:
    """Refuse outputs of a command that are files which a run keeps for itself, whatever ``--force`` says.

    Raises
    ------
    EmsvaeError
        Names the first such output.
    """
    free = {os.path.realpath(path) for path in allowed}
    for output in outputs:
        place = Path(os.path.realpath(output))
        if str(place) in free:
            continue
        for depth, folder in enumerate(list(place.parents)[:3], 1):
            if _is_ours(PurePosixPath(*place.parts[-depth:])) and _is_run(folder):
                raise EmsvaeError(
                    f"{output} is one of the files that the run in {folder} is made of; choose another name"
                )


def _is_run(folder: Path) -> bool:
    """Many programs keep a config.json. One of ours is known by our name in it, even where it is cut short."""
    config = folder / "config.json"
    return config.is_file() and '"emspatialvae"' in config.read_text(errors="replace")


def _is_ours(inside: PurePosixPath) -> bool:
    """Whether a path in a run folder is one of `OWN`; a folder is meant by ``folder/*``."""
    if inside.name == "*":
        return any(PurePosixPath(own).parts[: len(inside.parts) - 1] == inside.parts[:-1] for own in OWN if "/" in own)
    return any(
        len(PurePosixPath(own).parts) == len(inside.parts) and fnmatch.fnmatchcase(str(inside), own) for own in OWN
    )


def is_empty(folder: Path) -> bool:
    """Nothing in it but what a killed command may have left before it wrote anything."""
    return all(name == lock.NAME or leftovers.is_temporary(name) for name in os.listdir(folder))  # noqa: PTH208 - names are enough


def never_began(folder: Path) -> bool:
    """A run that was killed before its first checkpoint: nothing is lost with it."""
    if not (folder / "input.json.gz").is_file():
        return False
    made = ("checkpoint.pt", "latents.csv", "particles.star", "metrics.csv")
    return not any((folder / name).exists() for name in made)


def _check_unused(place: Path, path: Path) -> None:
    other = lock.in_use_by(place)
    if other is not None:
        raise RunFolderError(
            f"{path} is in use by {other}; wait until that has ended, stop it, or choose another --out"
        )


def _protected(folder: Path) -> Path | None:
    """Something in a run folder that its owner has write-protected (root could remove it, and shall not), or that we may not remove."""
    for at, folders, files in os.walk(folder):
        for path in (Path(at), *(Path(at) / name for name in (*files, *folders))):
            if not path.is_symlink() and not (
                path.stat().st_mode & 0o222 and (path.is_file() or os.access(path, os.W_OK))
            ):
                return path
    return None


def take_back(partial: Path, place: Path) -> None:
    """Remove a run folder that did not come to be; of the folder that it was made in, only what we have put there."""
    if partial != place:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release(partial)
        return
    for entry in list(os.scandir(place)):
        if entry.name in {PurePosixPath(own).parts[0] for own in OWN} or leftovers.is_temporary(entry.name):
            leftovers.remove(Path(entry.path))
    lock.release(place)

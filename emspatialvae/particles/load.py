"""`load_particles`: from a STAR file, a .cs file, a bare stack or a folder of pictures to a `ParticleStack`.

`read_star`, `read_cs` and `read_images` read the metadata; finding the stacks on the disk and checking what they hold is the same for
every kind.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from os.path import normpath
from pathlib import Path

import numpy as np

from emspatialvae.config import InputConfig
from emspatialvae.errors import ParticleFileError
from emspatialvae.imaging.ctf import NEEDED
from emspatialvae.io import hdf
from emspatialvae.io.compressed import bare_name
from emspatialvae.io.csg import read_csg
from emspatialvae.io.images import ImageFile, channels_of, notes_of, open_images
from emspatialvae.io.star import StarFile
from emspatialvae.particles.read_cs import CS_CTF, read_cs_source
from emspatialvae.particles.read_images import read_folder_source, read_npy_source, read_stack_source
from emspatialvae.particles.read_star import BEAM, STAR_CTF, particle_block, read_star_source, subtomograms, tilt_stacks
from emspatialvae.particles.stack import ParticleStack


def missing_ctf_columns(stack: ParticleStack) -> str:
    """Which columns a file lacks for there to be a CTF, as half a sentence; empty where it has all of them or none."""
    if isinstance(stack.metadata, StarFile):
        spelled, names = STAR_CTF, set(particle_block(stack.metadata).labels)
        optics = (block.labels for block in stack.metadata.blocks if block.name == "optics")
        names |= {label for labels in optics for label in labels if label in BEAM}
    elif stack.metadata is not None:
        spelled, names = CS_CTF, set(stack.metadata.dtype.names or ())
    else:
        return ""
    needed = [spelled[name] for name in NEEDED]
    there = [name for name in needed if name in names]
    missing = [name for name in needed if name not in names]
    return f"the file has {there[0]} but no {' and no '.join(missing)}" if there and missing else ""


READERS = {
    ".star": read_star_source,
    ".cs": read_cs_source,
    ".mrcs": read_stack_source,
    ".mrc": read_stack_source,
    ".npy": read_npy_source,
    **dict.fromkeys(hdf.ENDINGS, read_stack_source),
}


def followed(config: InputConfig) -> InputConfig:
    """The same input, with the ``.cs`` files that a ``.csg`` file points to instead of the latter; a passthrough that was given counts.

    Raises
    ------
    ParticleFileError
        The .csg file cannot be followed.
    """
    if config.particles.suffix.lower() != ".csg" or not config.particles.is_file():
        return config
    group = read_csg(config.particles)
    return replace(config, particles=group.particles, passthrough=config.passthrough or group.passthrough)


def load_particles(config: InputConfig, *, open_stacks: bool = True) -> ParticleStack:
    """Read particle metadata and look at the header of every stack that it names.

    Parameters
    ----------
    config
        Which file, and what the user knows better than the file.
    open_stacks
        False: do not look for the images (``files`` stays empty) and let unknown pixel sizes be NaN, for questions about
        the metadata alone.

    Raises
    ------
    ParticleFileError
        Anything that is missing or wrong: what was found, what was expected, what to do.
    """
    config = followed(config)
    path = config.particles
    if not path.exists():
        raise ParticleFileError(f"{path}: no such file; expected a particles .star, .cs or .mrcs")
    reader = read_folder_source if path.is_dir() else READERS.get(_ending(path))
    if reader is None:
        if bare_name(path) != path:
            raise ParticleFileError(
                f"{path} is compressed; only stacks (.mrcs.gz and the like) are read so: decompress it first"
            )
        raise ParticleFileError(
            f"{path}: cannot tell what kind of file this is; expected one of {', '.join(READERS)}, or a folder of pictures"
        )
    stack = reader(config)
    if len(stack) == 0:
        raise ParticleFileError(f"{path}: the particle table is empty; expected at least one row")
    stack = replace(stack, notes=(*stack.notes, *_notes_on_names(stack), *_notes_on_ctf(stack)))
    if config.limit is not None:
        stack = stack.subset(slice(config.limit))
    return open_stacks_of(stack, config) if open_stacks else stack


def _ending(path: Path) -> str:
    """By which the kind of a file is told: stacks may be compressed, tables not."""
    bare = bare_name(path).suffix.lower()
    return bare if bare in (".mrc", ".mrcs") else path.suffix.lower()


def _check_pixel_sizes(stack: ParticleStack) -> None:
    numbers: list[int] = np.unique(stack.optics_of).tolist()
    for number in numbers:
        if np.isnan(stack.optics[number].pixel_size_A):
            of_group = f" of optics group {stack.optics[number].name}" if len(stack.optics) > 1 else ""
            raise ParticleFileError(
                f"{stack.source}: the pixel size{of_group} is missing; give it in angstrom with --pixel-size-a"
            )


def _notes_on_names(stack: ParticleStack) -> Iterable[str]:
    """Repeated images are allowed (each row is a particle of its own), but the user should know."""
    pairs = stack.file_of.astype(np.int64) * (1 + int(stack.index_of.max())) + stack.index_of
    repeated = len(pairs) - len(np.unique(pairs))
    if repeated:
        values, counts = np.unique(pairs, return_counts=True)
        first = stack.names[np.flatnonzero(pairs == values[np.argmax(counts > 1)])[0]]
        yield f"{repeated} rows repeat an image that is listed before (the first is {first}); each row stays a particle"


def _notes_on_ctf(stack: ParticleStack) -> Iterable[str]:
    for odd, values, remark in () if stack.ctf is None else stack.ctf.oddities():
        row = int(odd.argmax())
        yield f"{int(odd.sum()):,} of {len(stack):,} particles have {values[row]:g} {remark} (the first is {stack.names[row]})"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for the file system, a folder that may not be looked into
        return False


def find_stack(spelled: str, config: InputConfig) -> Path:
    """Where a stack lies: in --project-dir, beside the metadata file, in the folders above it, in the current one.

    Last of all by its bare name in --project-dir, as stacks are that were copied into one folder. What stands with the metadata goes before the current folder: a file of that name there may be another data set's.

    Raises
    ------
    ParticleFileError
        Nowhere; the message lists every place that was tried.
    """
    tried = _places(spelled, config)
    for place in tried:
        if _is_file(place):
            return place
    places = ", ".join(str(place.parent) for place in tried)
    raise ParticleFileError(
        f"{config.particles}: stack {spelled} not found; tried {places}; say where the project lies with --project-dir"
    )


def _places(spelled: str, config: InputConfig) -> list[Path]:
    if config.strip_prefix and spelled.startswith(config.strip_prefix):
        spelled = spelled.removeprefix(config.strip_prefix).lstrip("/")
    home = config.particles.absolute().parent
    roots = [*([config.project_dir] if config.project_dir else []), home, *home.parents, Path.cwd()]
    places = [root / spelled for root in roots]
    if config.project_dir:
        places.append(config.project_dir / Path(spelled).name)
    return list(dict.fromkeys(places))


def _check_moved(stack: ParticleStack, config: InputConfig) -> None:
    """Refuse stacks of one name in several folders of which one alone is left, and a prefix that is nowhere."""
    if config.strip_prefix and not any(path.startswith(config.strip_prefix) for path in stack.paths):
        raise ParticleFileError(
            f"--strip-prefix {config.strip_prefix}: no path in {stack.source} begins so, the first is {stack.paths[0]}; give what it begins with"
        )
    if config.project_dir is None:
        return
    first: dict[Path, str] = {}
    for spelled, file in zip(stack.paths, stack.files, strict=True):
        if file.path != config.project_dir / Path(spelled).name:
            continue
        known = first.setdefault(file.path, spelled)
        short, long = sorted((normpath(known), normpath(spelled)), key=len)
        if short != long and not long.endswith(f"/{short}"):
            raise ParticleFileError(
                f"{stack.source}: {known} and {spelled} are two stacks, and {file.path} can be one of them only; copy them with their folders, "
                "or under other names"
            )


def _notes_on_places(stack: ParticleStack) -> Iterable[str]:
    """Where a file of the same name, but another one, lies in the current folder."""
    others = [
        (file.path, here)
        for spelled, file in zip(stack.paths, stack.files, strict=True)
        if (here := Path.cwd() / spelled).is_file() and not here.samefile(file.path)
    ]
    if others:
        found, here = others[0]
        more = f" (so do {len(others) - 1:,} others)" if len(others) > 1 else ""
        yield f"{found} is read, not {here}, which has the same name{more}; --project-dir decides otherwise"


def open_stacks_of(stack: ParticleStack, config: InputConfig) -> ParticleStack:
    """Find every stack of a table, read its header, and check it against what the table asks of it.

    Where the table says no pixel size at all and the headers agree on one, theirs is taken and said.
    """
    if np.isnan(stack.pixel_size_A).all():
        in_headers = {open_images(find_stack(path, config)).pixel_size_A for path in stack.paths}
        if len(in_headers) == 1 and (size := in_headers.pop()) is not None:
            said = f"the pixel size, {size:.4g} A, stands in the stack's header only"
            stack = replace(stack.of_pixel_size(size), notes=(*stack.notes, said))
    _check_pixel_sizes(stack)
    used: list[int] = np.unique(stack.file_of).tolist()
    renumber = np.zeros(len(stack.paths), np.int32)
    renumber[used] = np.arange(len(used))
    files = tuple(open_images(find_stack(stack.paths[f], config)) for f in used)
    stack = replace(stack, paths=tuple(stack.paths[f] for f in used), file_of=renumber[stack.file_of], files=files)
    sizes = np.array([file.n_images for file in files])
    beyond = np.flatnonzero(stack.index_of >= sizes[stack.file_of])
    if len(beyond):
        row = beyond[0]
        raise ParticleFileError(
            f"{stack.source}: particle {row + 1} is image {stack.index_of[row] + 1} of {stack.paths[stack.file_of[row]]}, "
            f"which holds {sizes[stack.file_of[row]]}; the stack and the file do not belong together"
        )
    _check_moved(stack, config)
    if stack.kind == "star":
        _check_are_images(stack)
    for file in files:
        if file.width != file.height:
            raise ParticleFileError(
                f"{file.path}: images are {file.width} x {file.height} pixels; expected square ones"
            )
        if channels_of(file) != stack.channels:
            raise ParticleFileError(
                f"{file.path}: images of {channels_of(file)} channel(s) beside others of {stack.channels}; take them apart"
            )
    return replace(stack, notes=(*stack.notes, *_notes_on_files(files), *_notes_on_places(stack)))


def _check_are_images(stack: ParticleStack) -> None:
    """Refuse volumes and tilt stacks that a STAR file lists as if they were images.

    Raises
    ------
    ParticleFileError
        A name without a number before ``@`` of a file with several images; a volume under an image name.
    """
    counted = np.array(["@" in name for name in stack.names.tolist()])
    for number, file in enumerate(stack.files):
        here = np.flatnonzero(stack.file_of == number)
        cubic = 1 < file.n_images == file.width == file.height
        whole = here[~counted[here]]
        if cubic and (len(whole) or (file.path.suffix == ".mrc" and not stack.index_of[here].any())):
            raise subtomograms(stack.source, f"{file.path} is {file.width} x {file.height} x {file.n_images}")
        if len(whole) and file.n_images > 1:
            name = str(stack.names[whole[0]])
            if "stack2d" in name:
                raise tilt_stacks(stack.source, name)
            raise ParticleFileError(
                f"{stack.source}: image name {name!r} of particle {whole[0] + 1} says no number, and the file holds {file.n_images} images; "
                "expected N@stack.mrcs with N counted from 1"
            )


def _notes_on_files(files: Iterable[ImageFile]) -> Iterable[str]:
    """What is odd about the stacks, each sentence once however many of them it is about."""
    about: dict[str, list[ImageFile]] = {}
    for file in files:
        for note in notes_of(file):
            about.setdefault(note, []).append(file)
    for note, of in about.items():
        others = f" and {len(of) - 1:,} other stack(s)" if len(of) > 1 else ""
        yield f"{of[0].path}{others}: {note}"


def input_files(stack: ParticleStack, config: InputConfig) -> list[Path]:
    """Every file that the particles were read from."""
    source = [config.particles] if not config.particles.is_dir() else []
    return [*source, *([config.passthrough] if config.passthrough else []), *(file.path for file in stack.files)]


def most_common_box(stack: ParticleStack) -> int:
    """The box of the largest number of particles."""
    boxes: list[int] = np.array([file.width for file in stack.files])[stack.file_of].tolist()
    return Counter(boxes).most_common(1)[0][0]

"""`Manifest`: what ``config.json`` of a run folder holds, and the checks of a file that anybody may have changed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emspatialvae import __version__
from emspatialvae.config import RunConfig
from emspatialvae.errors import EmsvaeError, RunFolderError
from emspatialvae.io.atomic import atomic_path
from emspatialvae.io.json_dataclass import from_json, is_list, is_object, to_json
from emspatialvae.preprocess.preparation import Preparation

if TYPE_CHECKING:
    from emspatialvae.model.image_spec import ImageSpec

FORMAT = 2
"""Number of the run folder's layout; any other is refused."""


LARGEST = {
    "preparation.box": 4096,
    "images.channels": 256,
    "config.model.z_dim": 1024,
    "results_z_dim": 1024,
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
    results_z_dim: int | None = None
    """Latent coordinates of the results, where there are any. Training finds their number, or adds them one after the other: a run that was interrupted
    may have fewer than it was told to have."""

    @property
    def z_dim(self) -> int | None:
        """Latent coordinates of the run as it is; None where nobody knows yet."""
        return self.results_z_dim or self.config.model.z_dim


def write_manifest(file: Path, manifest: Manifest) -> None:
    """Write ``config.json``."""
    content = {"format": FORMAT, "emspatialvae": __version__, **to_json(manifest)}
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_manifest(file: Path) -> Manifest:
    """What ``config.json`` holds.

    Raises
    ------
    RunFolderError
        It is damaged, or of a newer or older version.
    """
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
            results_z_dim=content.get("results_z_dim"),
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


def record_z_dim(file: Path, z_dim: int) -> None:
    """Write into ``config.json`` how many latent coordinates the results have; the setting stays what it was."""
    content = json.loads(file.read_text())
    if content.get("results_z_dim") != z_dim:
        content["results_z_dim"] = z_dim
        with atomic_path(file, overwrite=True) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")


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

"""Single-particle EM images without their in-plane pose: a spatial-VAE for RELION and cryoSPARC stacks.

Imports point to lower folders only (`tests/test_house.py` has the list):

    imaging  <  io, config  <  particles, model, simulation  <  preprocess  <  results
    <  training, inference, jobs  <  analysis  <  workflows  <  cli, api

``emsvae VERB`` is ``cli/VERB.py`` (its flags) and ``workflows/VERB.py`` (its work). The public names below are those of `emspatialvae.api`; they are
imported on first use (PEP 562), so that ``import emspatialvae`` and ``emsvae --help`` load neither torch nor pandas.

>>> import emspatialvae as ev
>>> sorted(ev.__all__)
['EmsvaeError', 'Run', 'evaluate', 'load_particles', 'read_run', 'simulate', 'train']
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emspatialvae.api import Run, evaluate, load_particles, read_run, simulate, train
    from emspatialvae.errors import EmsvaeError

__all__ = ["EmsvaeError", "Run", "evaluate", "load_particles", "read_run", "simulate", "train"]

try:
    __version__ = version("emspatialvae")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("emspatialvae.errors" if name == "EmsvaeError" else "emspatialvae.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

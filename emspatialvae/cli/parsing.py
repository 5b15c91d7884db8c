"""Words of the command line to a dataclass: field = flag, docstring = help."""

import io
import re
from contextlib import redirect_stderr
from itertools import takewhile
from typing import Any, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes

from emspatialvae.errors import EmsvaeError

T = TypeVar("T")


def parse(cls: type[T], argv: list[str], default: Any = None) -> T:
    """Flags to a dataclass, named after its command (``RelionJobCommand`` is ``emsvae relion-job``).

    Raises
    ------
    EmsvaeError
        What tyro says about the flags in a box of many lines, in one.
    """
    name = cls.__name__.removesuffix("Command").removesuffix("Config")
    command = f"emsvae {re.sub('(?<=[a-z])(?=[A-Z])', '-', name).lower()}"
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(cls, args=argv, prog=command, default=default, config=(OmitArgPrefixes,))
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        lines = [line.strip("\u2502\u256d\u256e\u2570\u256f\u2500 ") for line in said.getvalue().splitlines()[1:]]
        found = " ".join(takewhile(lambda line: line and line != "Got errors:", lines)).rstrip(".")
        raise EmsvaeError(f"{found}; see {command} --help") from None

"""The errors a user can cause and mend.

Every one of them is a single line that says what was found, what was expected and what to do; the command line prints it
and exits with its code. Anything else that is raised is a defect of the program.
"""

from pathlib import Path


class EmsvaeError(Exception):
    """What was found, what was expected, what to do: one line for the user."""

    exit_code: int = 2


class ParticleFileError(EmsvaeError):
    """A STAR, .cs or MRC file that cannot be used as it is."""


class OutputExistsError(EmsvaeError):
    """Something stands where a result should go, and ``--force`` was not given."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists already; choose another --out, or replace it with --force")


class RunFolderError(EmsvaeError):
    """A run folder that is not one, is damaged, or belongs to another model."""


class NothingSelectedError(EmsvaeError):
    """No particle meets what was asked; nothing was written."""

    exit_code: int = 3

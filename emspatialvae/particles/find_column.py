"""Which column of a particle file a user means: names as people type them."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from emspatialvae.errors import EmsvaeError


def find_column(wanted: str, *files: Sequence[str]) -> str:
    """The column that a user means; ``files``: the columns of each, the file that is searched first standing first.

    First as it is spelled, then without regard to case and leading underscore, then by its short name: what follows ``rln``,
    ``emsvae`` or the group of a .cs file, underscores left out: ``junk``, ``z1``, ``class_number`` (also plain ``class``). A short
    name that fits a column of the input and one of ours means ours.

    Raises
    ------
    EmsvaeError
        There is none (the nearest is named), or the short name fits several.
    """
    plain = wanted.lower().removeprefix("_")
    for names in files:
        found = [name for name in names if name == wanted] or [name for name in names if name.lower() == plain]
        for short in (plain.replace("_", ""), "classnumber" if plain == "class" else ""):
            fitting = [name for name in names if _short(name) == short]
            found = found or [name for name in fitting if name.startswith("emsvae")] or fitting
        if len(found) > 1:
            raise EmsvaeError(f"{wanted} may be {' or '.join(found)}; write the whole name")
        if found:
            return found[0]
    names = [name for file in files for name in file]
    spellings = {spelling: name for name in names for spelling in (_short(name), name.lower())}
    nearest = get_close_matches(plain, spellings, n=1, cutoff=0.5)
    hint = f"the nearest is {spellings[nearest[0]]}" if nearest else f"there are {', '.join(names[:6])} and so on"
    raise EmsvaeError(f"there is no column {wanted}; {hint}")


def _short(name: str) -> str:
    """``emsvaeZ1`` and ``emsvae/z[0]`` are both z1."""
    group, slash, field = name.rpartition("/")
    if group == "emsvae":
        field = re.sub(r"\[(\d+)\]$", lambda found: str(int(found[1]) + 1), field)
    return (field if slash else re.sub(r"^(rln|emsvae)(?=.)", "", name)).lower().replace("_", "")

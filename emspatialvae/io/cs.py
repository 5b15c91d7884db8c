"""cryoSPARC's ``.cs`` files: numpy structured arrays, one row per particle, joined on ``uid``."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emspatialvae.errors import ParticleFileError
from emspatialvae.io.atomic import atomic_path
from emspatialvae.io.compressed import kind_of

# Numpy refuses headers beyond 10,000 characters (they are parsed as Python literals, which can be slow, not unsafe);
# passthrough files with hundreds of fields are longer.
_MAX_HEADER_BYTES = 16_000_000
_NPY_MAGIC, _CSDAT_MAGIC = b"\x93NUMPY", b"\x94CSDAT"


def read_cs(path: Path) -> NDArray[Any]:
    """Read a ``.cs`` file as a structured array of shape [n].

    Raises
    ------
    ParticleFileError
        Not found, unreadable, not in numpy format, pickled, without fields, or truncated.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            magic = stream.read(6)
            if magic == _CSDAT_MAGIC:
                raise ParticleFileError(
                    f"{path} is in cryoSPARC's streaming format; numpy format is needed: load it with cryosparc-tools"
                    " and save it again with format=NUMPY_FORMAT"
                )
            if (kind := kind_of(magic)) is not None:
                raise ParticleFileError(f"{path} is compressed ({kind}); decompress it first, only stacks are read so")
            if magic != _NPY_MAGIC:
                what = "is empty" if not magic else f"starts with {magic!r}"
                raise ParticleFileError(f"{path} {what}; a .cs file (a numpy structured array) was expected")
            stream.seek(0)
            array = np.load(stream, allow_pickle=False, max_header_size=_MAX_HEADER_BYTES)
    except OSError as error:
        raise ParticleFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except ParticleFileError:
        raise
    except (
        Exception
    ) as error:  # numpy evaluates the header as a Python literal: damaged ones raise whatever Python's parser raises
        if "allow_pickle" in str(error):
            raise ParticleFileError(
                f"{path} holds pickled Python objects, which are not read for safety; export the particles again"
            ) from error
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise ParticleFileError(f"{path} is damaged or cut short ({reason}); copy or export it again") from error
    if array.dtype.names is None or array.ndim != 1:
        raise ParticleFileError(
            f"{path} holds a plain {array.dtype} array of shape {array.shape}; a table with named fields was expected"
        )
    return array


_KINDS = {"text": "SU", "numbers": "iuf", "whole numbers": "iu"}


def check_fields(path: Path, array: NDArray[Any], expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Refuse fields of another kind than cryoSPARC's, so that what follows need not ask.

    Parameters
    ----------
    expected
        Field -> text, numbers or whole numbers; and the shape of one value. Fields that the array lacks are passed over.

    Raises
    ------
    ParticleFileError
        A field of another type or shape.
    """
    for name, (kind, shape) in expected.items():
        if name not in (array.dtype.names or ()):
            continue
        base, found = array.dtype[name].base, array.dtype[name].shape
        if base.kind not in _KINDS[kind] or found != shape:
            each = f" of shape {shape}" if shape else ""
            raise ParticleFileError(
                f"{path}: field {name} holds {base.name}{f' of shape {found}' if found else ''}, expected {kind}{each}; export the particles again"
            )


def write_cs(path: Path, array: NDArray[Any], overwrite: bool = False) -> None:
    """Write a structured array; through an open file, because numpy would add ``.npy`` to the name."""
    with atomic_path(Path(path), overwrite) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def write_rows(array: NDArray[Any], keep: NDArray[np.bool_], out: IO[bytes]) -> None:
    """Write the rows of a structured array that are kept [n], all their bytes as they are, to an open file."""
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), array.dtype.itemsize)
    # By bytes: numpy may leave out what lies between fields when it copies them one by one.
    np.save(out, raw[keep].reshape(-1).view(array.dtype), allow_pickle=False)


def join_passthrough(main: NDArray[Any], passthrough: NDArray[Any]) -> NDArray[Any]:
    """Add the fields of ``passthrough`` that ``main`` lacks, matched on ``uid``.

    All rows of ``main`` are kept, in their order; a field in both keeps the value of ``main``, as in cryoSPARC.

    Raises
    ------
    ParticleFileError
        No ``uid`` in one of the two, repeated uids, or particles of ``main`` that ``passthrough`` does not hold.
    """
    for name, table in (("particle", main), ("passthrough", passthrough)):
        if "uid" not in (table.dtype.names or ()):
            raise ParticleFileError(f"the {name} .cs file has no field uid, on which the two are joined")
        if table.dtype["uid"].base.kind not in "iu" or table.dtype["uid"].shape:
            raise ParticleFileError(
                f"the {name} .cs file has a uid of type {table.dtype['uid']}; expected whole numbers"
            )
        repeated = len(table) - len(np.unique(table["uid"]))
        if repeated:
            raise ParticleFileError(f"the {name} .cs file repeats {repeated} uids; every particle needs its own")
    order = np.argsort(passthrough["uid"])
    sorted_uid = passthrough["uid"][order]
    at = np.searchsorted(sorted_uid, main["uid"])
    found = at < len(sorted_uid)
    found[found] = sorted_uid[at[found]] == main["uid"][found]
    if not found.all():
        raise ParticleFileError(
            f"{np.count_nonzero(~found)} of {len(main)} particles are not in the passthrough .cs file;"
            " take both from the same job"
        )
    rows = order[at]
    own = set(main.dtype.names or ())
    joined = _widened(
        main, {name: field[0] for name, field in (passthrough.dtype.fields or {}).items() if name not in own}
    )
    for name in joined.dtype.names or ():
        if name not in own:
            joined[name] = passthrough[name][rows]
    return joined


def with_fields(array: NDArray[Any], values: Mapping[str, ArrayLike]) -> NDArray[Any]:
    """Return a copy of ``array`` with fields replaced or, where it has none of that name, added at the end.

    Parameters
    ----------
    array
        Structured, shape [n].
    values
        Field name -> values of shape [n, ...]. A field that exists keeps its dtype; a new one takes that of its values.

    Raises
    ------
    ValueError
        A shape that does not fit, or values that an existing field cannot hold (text cut, integers changed).
    """
    own = array.dtype.names or ()
    columns = {name: _as_bytes(np.asarray(column)) for name, column in values.items()}
    for name, column in columns.items():
        if column.shape[:1] != array.shape:
            raise ValueError(f"{name}: {column.shape[:1]} values for {array.shape} rows")
    added = {name: np.dtype((column.dtype, column.shape[1:])) for name, column in columns.items() if name not in own}
    out = _widened(array, added)
    for name, column in columns.items():
        if out[name].shape != column.shape:
            raise ValueError(f"{name} has shape {out[name].shape}, its new values have {column.shape}")
        out[name] = column.astype(out[name].dtype)
        if out[name].dtype.kind in "iuSb" and not np.array_equal(out[name], column):
            raise ValueError(f"{name} is of type {out[name].dtype}, which cannot hold its new values ({column.dtype})")
    return out


def decode_path(path: bytes | str) -> str:
    """Path of a ``blob/path`` field as text, without the ``>`` that cryoSPARC puts before paths in exported files."""
    text = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else str(path)
    return text.removeprefix(">")


def _as_bytes(column: NDArray[Any]) -> NDArray[Any]:
    """Text as bytes, the only text cryoSPARC's files hold; little-endian numbers."""
    if column.dtype.kind == "U":
        return np.char.encode(column, "utf-8")
    return column.astype(column.dtype.newbyteorder("<"), copy=False)


def _widened(array: NDArray[Any], added: Mapping[str, np.dtype[Any]]) -> NDArray[Any]:
    """A copy of ``array`` with room for more fields after the last; the old bytes of every row stay as they are."""
    if not added:
        return array.copy()
    old = array.dtype
    fields = old.fields or {}
    names, formats = [*fields, *added], [*(field[0] for field in fields.values()), *added.values()]
    offsets = [field[1] for field in fields.values()]
    end = old.itemsize
    for dtype in added.values():
        offsets.append(end)
        end += dtype.itemsize
    out = np.zeros(len(array), np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": end}))
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), old.itemsize)
    out.view(np.uint8).reshape(len(array), end)[:, : old.itemsize] = raw
    return out

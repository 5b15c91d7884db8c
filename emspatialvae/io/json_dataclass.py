"""Dataclasses of plain values to JSON and back, every type checked on the way in."""

import dataclasses
import types
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from emspatialvae.errors import EmsvaeError

T = TypeVar("T")


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """A JSON object."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """A JSON list."""
    return isinstance(value, list)


def to_json(value: Any) -> Any:
    """Dataclasses, paths and tuples as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[T], values: Any) -> T:
    """The dataclass ``cls`` from what `to_json` made of it.

    Raises
    ------
    EmsvaeError
        An unknown or missing key, or a value of another kind: the file was written by another version, or edited.
    """
    if not isinstance(values, dict):
        raise EmsvaeError(f"{str(values)[:40]!r} where the settings of {cls.__name__} are expected")
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise EmsvaeError(f"unknown setting {unknown[0]!r} for {cls.__name__}; was it written by a newer version?")
    try:
        return cls(**{key: _value_from_json(hints[key], value) for key, value in values.items()})
    except TypeError as error:
        raise EmsvaeError(f"a setting of {cls.__name__} is missing: {error}") from None


def _value_from_json(hint: Any, value: Any) -> Any:
    if get_origin(hint) is Annotated:
        return _value_from_json(get_args(hint)[0], value)
    if get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        hint = next(choice for choice in get_args(hint) if choice is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    if hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_value_from_json(get_args(hint)[0], item) for item in value)
    if get_origin(hint) is Literal:
        fits = isinstance(value, str) and value in get_args(hint)
    else:
        fits = isinstance(value, _JSON_TYPES.get(hint, ()))
    if not fits or (isinstance(value, bool) and hint in (int, float)):
        raise EmsvaeError(f"{str(value)[:40]!r} where {getattr(hint, '__name__', hint)} is expected")
    return value


_JSON_TYPES: dict[Any, Any] = {int: int, float: (int, float), bool: bool, str: str}

"""``checkpoint.pt``: the state that a training goes on from, as tensors and plain values only, so that no file can run code."""

import io
from pathlib import Path
from typing import Any, cast

from emspatialvae.errors import RunFolderError
from emspatialvae.io.atomic import atomic_path
from emspatialvae.io.json_dataclass import is_list, is_object
from emspatialvae.results import own_files
from emspatialvae.results.manifest import FORMAT


def save_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write ``checkpoint.pt`` whole or not at all; ``state`` holds tensors, numbers, strings, lists and dicts only.

    Tensors are written as those of the CPU, whatever device they lie on, so that any machine can go on with the run.
    """
    import torch

    # Through memory: on a full disk torch raises a RuntimeError about positions, a plain write says what is the matter.
    whole = io.BytesIO()
    torch.save({"format": FORMAT, **_on_cpu(state)}, whole)
    with atomic_path(file, overwrite=True) as temporary:
        temporary.write_bytes(whole.getbuffer())


def load_checkpoint(file: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote.

    Raises
    ------
    RunFolderError
        There is none, or it is damaged.
    """
    import torch

    if not file.is_file():
        raise RunFolderError(
            f"{file.parent} holds no checkpoint.pt: "
            + (
                "its training has not begun; `emsvae train ... --resume` begins it"
                if own_files.never_began(file.parent)
                else "it is gone; train anew with --force"
            )
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunFolderError(f"{file} is damaged ({reason[:120]}); train again") from error
    if not (is_object(state) and {"format", "model"} <= state.keys()):
        raise RunFolderError(f"{file} is a checkpoint of another program; train again")
    if state["format"] != FORMAT:
        raise RunFolderError(f"{file} has format {state['format']}, expected {FORMAT}; train again")
    model = state["model"]
    if not (is_object(model) and all(isinstance(value, torch.Tensor) for value in model.values())):
        raise RunFolderError(f"{file} is damaged (its model is not made of tensors); train again")
    return state


def load_state(module: Any, state: dict[str, Any], where: Path) -> None:
    """Put a state dict into a module.

    Raises
    ------
    RunFolderError
        The names or shapes differ: the checkpoint belongs to another model.
    """
    try:
        module.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        found = " ".join(str(error).split())
        raise RunFolderError(
            f"{where / 'checkpoint.pt'} belongs to another model than config.json says ({found[:160]})"
        ) from None


def _on_cpu(value: Any) -> Any:
    """The same with all its tensors on the CPU."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if is_object(value):
        return {key: _on_cpu(inside) for key, inside in value.items()}
    if is_list(value):
        return [_on_cpu(inside) for inside in value]
    if isinstance(value, tuple):
        return tuple(map(_on_cpu, cast(tuple[Any, ...], value)))
    return value

"""A device that no machine has: its tensors lie in the CPU's memory, but refuse to be mixed with those of the CPU, as a GPU's do.

Built on wrapper tensors (`torch.Tensor._make_wrapper_subclass`): each operation is done on the tensors inside, once it is known that all
of them are at home on the device. What a GPU would have to wait for (a number read back, a copy to the CPU) is counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only


class _Backend(torch.utils.backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


torch.utils.backend_registration._setup_privateuseone_for_python_backend("standin", _Backend())
DEVICE = torch.device("standin", 0)
"""What torch calls a device that somebody else brings along."""
CROSSING = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
"""Operations whose tensors may lie on different devices."""
WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}
"""Operations for whose result the CPU waits."""

waits: Counter[str] = Counter()
"""How often each of them was called on a tensor of the device, and how often one was copied to the CPU."""


class MixedDevices(RuntimeError):
    """What CUDA would say: expected all tensors to be on the same device."""


class There(torch.Tensor):
    """A tensor on the stand-in device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "There":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There({self.inner!r})"

    def item(self) -> Any:
        """A number for which the CPU waits."""
        waits["a number"] += 1
        return self.inner.item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def tolist(self) -> Any:
        """Numbers for which the CPU waits."""
        waits["numbers"] += 1
        return self.inner.tolist()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, torch.Tensor], *_: Any) -> "There":
        return There(parts["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = tree_flatten((args, kwargs))[0]
        here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, There) and x.dim() > 0]
        if here and func not in CROSSING and not _may_index(func, args):
            raise MixedDevices(f"{func}: a tensor {tuple(here[0].shape)} of the CPU among those of the device")
        if func in WAITS:
            waits[str(func)] += 1
        target = kwargs.get("device")
        leaves = func is torch.ops.aten._to_copy.default and target is not None and torch.device(target) != DEVICE
        if leaves:
            waits["to the CPU"] += 1
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], There):
            waits["to the CPU"] += 1
        plain_args, plain_kwargs = tree_map_only(There, lambda t: t.inner, (args, kwargs))
        if target is not None:
            plain_kwargs["device"] = "cpu"
        _check_generator(plain_kwargs)
        found = func(*plain_args, **plain_kwargs)
        if leaves or (func is torch.ops.aten.copy_.default and not isinstance(args[0], There)):
            return found
        found = tree_map_only(torch.Tensor, There, found)
        return return_and_correct_aliasing(func, args, kwargs, found)


class _Factories(TorchDispatchMode):
    """Makes what is asked for on the device, and takes copies to it there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = kwargs.get("device")
        if target is None or torch.device(target) != DEVICE or any(issubclass(t, There) for t in types):
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None:
            raise MixedDevices(f"{func}: random numbers of the device from a generator of the CPU")
        return There(func(*args, **{**kwargs, "device": "cpu"}))


def _may_index(func: Any, args: Any) -> bool:
    """Indices may lie on the CPU: torch takes them over."""
    return (
        "index" in str(func)
        and isinstance(args[0], There)
        and not any(
            isinstance(x, torch.Tensor) and not isinstance(x, There) and x.dtype.is_floating_point
            for x in tree_flatten(args)[0]
        )
    )


def _check_generator(kwargs: dict[str, Any]) -> None:
    if kwargs.get("generator") is not None:
        raise MixedDevices("random numbers of the device from a generator of the CPU")


@contextmanager
def _there() -> Iterator[None]:
    """The device, in this thread."""
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` copies to the device where `_Factories` sees it
    try:
        with _Factories():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


@contextmanager
def stand_in() -> Iterator[torch.device]:
    """The device, while it is there."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(False)
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    waits.clear()
    submit = ThreadPoolExecutor.submit

    def submit_there(self: ThreadPoolExecutor, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        def work_there() -> Any:  # a mode holds in its own thread only
            with _there():
                return work(*args, **kwargs)

        return submit(self, work_there)

    ThreadPoolExecutor.submit = submit_there  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with _there():
            yield DEVICE
    finally:
        ThreadPoolExecutor.submit = submit
        torch.__future__.set_swap_module_params_on_conversion(before)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)

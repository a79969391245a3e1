"""A device that computes as the CPU does and keeps its tensors apart, as there may be no GPU.

Its tensors have real numbers, and say that they are on `meta`. What a GPU would refuse, refuses
here: an operation that mixes them with tensors of the CPU, and NumPy. What would make the host wait
for a GPU is counted: numbers that are read, copies to the CPU, shapes that depend on numbers.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PLACE = torch.device("lazy:0")
aten = torch.ops.aten
# Shapes that depend on numbers; so do masks as indices.
DEPENDENT = {
    aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2, aten.bincount,
    aten.repeat_interleave,
}  # fmt: skip
COPIES = {aten._to_copy, aten.copy_}


class _There(Tensor):
    """The CPU's memory under another name."""

    @staticmethod
    def __new__(cls, here: Tensor) -> Tensor:
        return Tensor._make_subclass(cls, here, dispatch_device=True)  # type: ignore[attr-defined]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:  # which asks for the type
            return args[0].cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        # Its legacy constructor takes the place of the memory.
        return found.to(PLACE) if func is Tensor.new_tensor else found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return PLACE
        raise RuntimeError(f"{func}: outside of `Elsewhere`")


@functools.cache
def _is_made_of_others(func: Any) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def _here(value: Any) -> Any:
    if not isinstance(value, _There):
        return value
    storage, place = value.untyped_storage(), value.storage_offset()
    return torch.empty(0, dtype=value.dtype).set_(storage, place, value.size(), value.stride())


class Elsewhere(TorchDispatchMode):
    """While it is entered, `tensor.to(PLACE)` is on the other device; see `elsewhere`.

    Attributes:
        waits: how often the host would have waited for it, by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return PLACE
        if _is_made_of_others(func):  # under inference_mode it comes whole
            with self:
                return func.decompose(*args, **(kwargs or {}))
        kwargs, packet = dict(kwargs or {}), func._overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, _There)]
        told = kwargs.get("device")
        is_there = bool(there) if told is None else torch.device(told).type == PLACE.type
        if told is not None:
            kwargs["device"] = torch.device("cpu")
        if there:
            self._judge(func, packet, tensors, args, is_there)
        # A view of an ordinary tensor is one, under inference_mode, too.
        is_ordinary = func.is_view and not tensors[0].is_inference()
        is_asked = is_ordinary and torch.is_inference_mode_enabled()
        with torch.inference_mode(False) if is_asked else nullcontext():
            plain = tree_map(_here, (args, kwargs))
            found = func(*plain[0], **plain[1])
            return self._named(found, plain, args, is_there)

    def _named(self, found: Any, plain: Any, args: Any, is_there: bool) -> Any:
        mutated = {id(p): a for p, a in zip(plain[0], args, strict=True) if isinstance(p, Tensor)}

        def out(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in mutated:  # in place
                return mutated[id(value)]
            return _There(value) if is_there else value

        return tree_map(out, found)

    def _judge(
        self, func: Any, packet: Any, tensors: list[Tensor], args: Any, is_there: bool
    ) -> None:
        """Counts what waits, and refuses what mixes."""
        name = str(packet).removeprefix("aten.")
        if packet in COPIES:
            source = args[1] if packet is aten.copy_ else args[0]
            target_is_there = isinstance(args[0], _There) if packet is aten.copy_ else is_there
            self.waits[name] += isinstance(source, _There) and not target_is_there
            return
        by_mask = packet in (aten.index, aten.index_put_, aten.index_put)
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if by_mask else []
        self.waits[name] += packet in DEPENDENT or packet is aten._local_scalar_dense
        self.waits[f"{name} by a mask"] += len(masks)
        numbers_may_be_here = torch.Tag.pointwise in func.tags
        for tensor in tensors:
            if not isinstance(tensor, _There) and (tensor.ndim > 0 or not numbers_may_be_here):
                raise RuntimeError(
                    f"{name}: expected all tensors on the same device, got one of shape "
                    f"{list(tensor.shape)} on the CPU"
                )


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """With the other device, to which modules can be moved, too."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # their type is the place
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=PLACE) asks the mode
    try:
        with Elsewhere() as mode:
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(False)

"""A pretend accelerator: CPU tensors that say they are on `cuda:0`, and refuse to be mixed with those that do not.

It finds what only a GPU would find (a model left behind, a tensor made in the wrong place, a CPU generator asked to
fill memory of the GPU) on machines that have none. Where a tensor is, is written on its storage, so that views and
parameters agree.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, PRETEND = torch.device("cpu"), torch.device("cuda", 0)
MAY_MIX = {"copy_", "_to_copy", "index", "index_put_", "index_put", "_index_put_impl_", "_local_scalar_dense"}
STRICT = {"cat", "stack"}  # elsewhere CPU tensors of no dimension go with any device, as numbers do
MATRIX_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}


def place(x: Tensor) -> torch.device:
    """Where a tensor is, or pretends to be."""
    return x.device if x.is_meta else getattr(x.untyped_storage(), "pretended", CPU)


def mark(x: Any, device: torch.device) -> Any:
    """Write on the storage of every tensor in `x` where it is."""
    for tensor in (leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)):
        tensor.untyped_storage().pretended = device  # type: ignore[attr-defined]
    return x


def named(x: Any) -> torch.device | None:
    """The device that an argument names, if it names one."""
    kind = x.type if isinstance(x, torch.device) else x.split(":")[0] if isinstance(x, str) else ""
    return {"cpu": CPU, "cuda": PRETEND}.get(kind)


class Operations(TorchDispatchMode):
    """Every operation's tensors must be in one place; what it makes is there too. Counts matrix products by place."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[str] = Counter()
        self.of_caller = CPU
        """Where an operation without tensors, which others are composed of, makes its own."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        places = {place(x) for x in tensors if x.dim() or name in STRICT or place(x) == PRETEND}
        places = places or ({CPU} if tensors else set())
        if len(places) > 1 and name not in MAY_MIX and not name.startswith("_foreach"):
            raise RuntimeError(f"{func} got tensors on {sorted(map(str, places))}")
        here = place(tensors[0]) if name in MAY_MIX and tensors else next(iter(places), self.of_caller)
        if here == PRETEND and any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise RuntimeError(f"{func} got a CPU generator for a tensor on {here}")
        if name in MATRIX_PRODUCTS or "attention" in name:
            self.products[here.type] += 1
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage() for x in tensors}
        for made in (x for x in tree_leaves(out) if isinstance(x, Tensor) and x.untyped_storage() not in known):
            mark(made, here)
        return out


class Calls(TorchFunctionMode):
    """Python calls that name or ask for a device."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations = operations

    def within(self, place: torch.device, func: Any, args: Any, kwargs: Any) -> Any:
        """The call, whose inner tensors are made at `place`."""
        before, self.operations.of_caller = self.operations.of_caller, place
        try:
            return func(*args, **kwargs)
        finally:
            self.operations.of_caller = before

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return place(args[0])
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return place(args[0]) == PRETEND
        if name in ("numpy", "__array__") and place(args[0]) == PRETEND:
            raise TypeError("can't convert a cuda:0 tensor to numpy")
        target = next((d for d in map(named, (*args[1:], *kwargs.values())) if d is not None), None)
        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
            target = place(args[1])
        if name in ("cpu", "cuda"):
            target = CPU if name == "cpu" else PRETEND
        if name == "new_tensor" and target is None:
            target = place(args[0])
        if target is None:
            there = (place(leaf) == PRETEND for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            return self.within(PRETEND if any(there) else CPU, func, args, kwargs)
        if target == PRETEND and kwargs.get("generator") is not None:
            raise RuntimeError(f"{name} got a CPU generator for a tensor on {target}")
        first: Any = args[0] if args else None
        args = tuple(CPU if i and named(arg) is not None else arg for i, arg in enumerate(args))
        kwargs = {key: CPU if named(value) is not None else value for key, value in kwargs.items()}
        if name in ("to", "cpu", "cuda"):
            if place(first) == target:
                return func(*args, **kwargs)
            return mark(first.to(*args[1:], **{**kwargs, "copy": True}), target)
        return mark(self.within(target, func, args, kwargs), target)


@contextmanager
def pretend_device(monkeypatch) -> Iterator[Operations]:
    """Within, `cuda:0` exists and is what Accelerate picks; gives the counts of matrix products by place."""
    monkeypatch.setattr(PartialState(), "device", PRETEND)
    with Operations() as operations, Calls(operations):
        yield operations

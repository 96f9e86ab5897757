"""How a model computes: which of its tensors it reads, and in which floating dtypes narrower than float32.

`widened` runs code with float16 and bfloat16 replaced by float32 wherever torch functions name them, so that a model
whose code casts, such as one that keeps its rotary tables in bfloat16, is compared in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NARROW = ("bfloat16", "float16")


@contextmanager
def observed(model: Any, report: dict[str, set[str]]) -> Iterator[None]:
    """While inside, add to report["narrow"] the narrow dtypes of results, to report["read"] the names of the model's
    tensors that an operation reads."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    places: dict[int, set[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            places.setdefault(tensor.untyped_storage().data_ptr(), set()).add(name)
    narrow = {getattr(torch, name) for name in NARROW}

    class Observer(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            for given in tree_leaves((args, kwargs)):
                if isinstance(given, torch.Tensor) and given.device.type != "meta":
                    report["read"] |= places.get(given.untyped_storage().data_ptr(), set())
            result = func(*args, **kwargs)
            for made in tree_leaves(result):
                if isinstance(made, torch.Tensor) and made.dtype in narrow:
                    report["narrow"].add(str(made.dtype).removeprefix("torch."))
            return result

    with Observer():
        yield


def narrow_tensors(model: Any) -> set[str]:
    """The narrow dtypes of the tensors that a model holds beside its parameters: buffers and attributes of modules."""
    import torch

    held = [tensor for module in model.modules() for tensor in (*module._buffers.values(), *vars(module).values())]
    names = {str(t.dtype).removeprefix("torch.") for t in held if isinstance(t, torch.Tensor) and t.is_floating_point()}
    return names & set(NARROW)


@contextmanager
def widened(replaced: set[str]) -> Iterator[None]:
    """While inside, torch functions that are asked for a narrow dtype use float32; the dtypes are added to `replaced`."""
    from unittest.mock import patch

    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._pytree import tree_map

    narrow = {getattr(torch, name): name for name in NARROW}
    casts = {torch.Tensor.bfloat16: "bfloat16", torch.Tensor.half: "float16"}
    set_default_dtype = torch.set_default_dtype

    def wide(value: Any) -> Any:
        if isinstance(value, torch.dtype) and value in narrow:
            replaced.add(narrow[value])
            return torch.float32
        return value

    class Widening(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in casts:
                replaced.add(casts[func])
                return args[0].float()
            return func(*tree_map(wide, args), **tree_map(wide, kwargs or {}))

    def enter(autocast: Any) -> Any:
        wide(autocast.fast_dtype)
        return autocast

    with (
        patch.object(torch, "set_default_dtype", lambda dtype: set_default_dtype(wide(dtype))),
        patch.object(torch.autocast, "__enter__", enter),
        patch.object(torch.autocast, "__exit__", lambda autocast, *error: None),
        Widening(),
    ):
        yield

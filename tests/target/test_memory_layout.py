"""Tensors in memory against what saving writes, by functions that save in ways Transformers does, and in ways it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from compiler.target.class_signature import MemoryTensor
from compiler.target.memory_layout import memory_tensors

Tensors = dict[str, torch.Tensor]
Save = Callable[[Mapping[str, torch.Tensor]], Tensors]


def layouts(shape: tuple[int, ...], save: Save, name: str = "w") -> list[MemoryTensor]:
    state = {name: torch.empty(shape, device="meta")}
    try:
        written: Tensors = save(state)
    except ValueError:
        written = {}
    return list(memory_tensors(state, written, save))


def one(change: Callable[[torch.Tensor], Tensors]) -> Save:
    """A function that saves each tensor by itself."""
    return lambda tensors: {name: part for tensor in tensors.values() for name, part in change(tensor).items()}


def test_a_name_is_changed() -> None:
    assert layouts((8, 3), one(lambda t: {"new": t})) == [MemoryTensor("w", ("new",), ())]
    assert layouts((8, 3), one(lambda t: {"w": t})) == []
    assert layouts((8, 3), one(lambda t: {"w": t.clone()})) == []


@pytest.mark.parametrize(
    ("shape", "order", "text"),
    [
        ((8, 3), (1, 0), "a b -> b a"),
        ((8, 3, 5), (0, 2, 1), "a b c -> a c b"),
        ((2, 3, 5), (2, 0, 1), "a b c -> c a b"),
    ],
)
def test_axes_are_exchanged(shape: tuple[int, ...], order: tuple[int, ...], text: str) -> None:
    found = layouts(shape, one(lambda t: {"new": t.permute(order).clone()}))
    assert found == [MemoryTensor("w", ("new",), ((("rearrange", text),),))]


@pytest.mark.parametrize(("parts", "axis"), [(2, 0), (2, 1), (3, 1)])
def test_a_fused_tensor_is_split(parts: int, axis: int) -> None:
    """Three parts do not fit the four rows of the experiment, and are found along its six columns."""
    names = ("q", "k", "v")[:parts]
    found = layouts((6, 12), one(lambda t: dict(zip(names, t.chunk(parts, axis), strict=True))))
    assert found == [MemoryTensor("w", names, ((("split", axis), ("parts", parts)),))]


def test_experts_are_unstacked() -> None:
    found = layouts((3, 4, 8), one(lambda t: {f"experts.{n}.up": part for n, part in enumerate(t)}))
    assert found == [MemoryTensor("w", ("experts.{e}.up",), ((("unstack", "e"), ("axis", 0)),))]


def test_fused_experts_are_split_and_unstacked() -> None:
    """The index is the number that counts from 0, not the last one of the names."""

    def apart(tensor: torch.Tensor) -> Tensors:
        halves = tensor.chunk(2, 1)
        return {f"experts.{n}.w.{7 + h}": half[n] for h, half in enumerate(halves) for n in range(len(tensor))}

    (found,) = layouts((3, 4, 8), one(apart))
    assert found.targets == ("experts.{e}.w.7", "experts.{e}.w.8")
    assert found.steps == ((("split", 1), ("parts", 2)), (("unstack", "e"), ("axis", 0)))


def only_with_others(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    raise ValueError("w is written together with another tensor")


@pytest.mark.parametrize(
    ("shape", "save"),
    [
        ((8, 3), only_with_others),
        ((8, 3), one(lambda t: {"new": t + 1})),
        ((6, 12), one(lambda t: {"q": t[:2], "k": t[2:]})),
        ((6, 12), one(lambda t: {"q": t[::2], "k": t[1::2]})),
        ((6, 12), one(lambda t: {"q.0": t[::2], "q.1": t[1::2]})),
        ((3, 4, 8), one(lambda t: {f"experts.{n}.up": part * 2 for n, part in enumerate(t)})),
        ((3, 4, 8), one(lambda t: {f"experts.{n}.up": part for n, part in enumerate(t[:2])})),
        ((6, 12), one(lambda t: {"new": t.clone()} if len(t) == 4 else {"other": t.clone()})),
    ],
    ids=["not alone", "other values", "uneven", "interleaved", "numbered", "doubled", "not all", "by its size"],
)
def test_what_no_step_expresses_is_left_out(shape: tuple[int, ...], save: Save) -> None:
    assert layouts(shape, save) == []

"""How the state dict of a model in memory differs from the tensors that `save_pretrained` writes.

Generation 5 fuses tensors on loading and takes them apart on saving, so a state dict that a trainer saves by itself has
other names than a folder. The functions that save know how; what they do to one tensor is found by an experiment with a
small tensor of numbered elements, which reads no class of Transformers: every result must be a part of that tensor, cut,
unstacked or transposed. The real names come from the same functions at the real size.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from math import prod
from typing import Any

from compiler.target.class_signature import MemoryTensor, Step
from compiler.tensor_names import NUMBER

Save = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # name -> tensor, as in memory, to the same as written
_SIZES = {0: (), 1: (4,), 2: (4, 6), 3: (2, 4, 6), 4: (2, 4, 6, 8)}  # of the small tensor, by its number of axes
_STACKED = 2  # the first axis of the small tensor, where experts are stacked
INDEX = "e"  # of the names that a stacked axis is taken apart into
_UNSTACK: Step = (("unstack", INDEX), ("axis", 0))


def keeps_level(change: Any) -> bool:
    """Whether a change of names on loading is undone on saving: all but those of prefixes, of which only those that drop a
    level of a submodel's names, where the submodel itself is not called like that level."""
    if not hasattr(change, "prefix_to_remove"):
        return True
    place, level = change.scope_prefix or "", change.prefix_to_remove
    return bool(place and level) and place.rpartition(".")[2] != level


def undone_on_saving(model: Any, modeling_utils: Any) -> Mapping[str, str]:
    """The patterns of names that generation 4 renames on loading and undoes on saving, which it does for some families."""
    families = getattr(modeling_utils, "VLMS", ())
    bases = [base.__name__.lower() for base in type(model).__mro__]
    found: Mapping[str, str] = model._checkpoint_conversion_mapping
    return found if any(family in base for base in bases for family in families) else {}


def saved_name(name: str, mapping: Mapping[str, str]) -> str:
    """The name that generation 4 writes for a tensor, by the `mapping` of patterns that it renames on loading: the first
    that applies is undone."""
    for pattern, replacement in mapping.items():
        new, count = re.subn(replacement, re.sub(r"\(.*\)", "", pattern.lstrip("^")), name)
        if count:
            return new
    return name


def memory_tensors(state: Mapping[str, Any], written: Mapping[str, Any], save: Save) -> Iterator[MemoryTensor]:
    """The tensors of `state` (on the meta device) that are not written under their name as they are.

    A tensor that is written only together with others, or in a way that no step of a spec expresses, is left out.
    """
    renamed = {id(tensor): name for name, tensor in written.items()}  # saving passes on what it only renames
    for name, tensor in state.items():
        if (new := renamed.get(id(tensor))) is not None:
            if new != name:
                yield MemoryTensor(name, (new,), ())
            continue
        try:
            real = save({name: tensor})
            small = _numbered(tensor, _SIZES[tensor.ndim])
            found = _steps(small, save({name: small}))
        except Exception:  # Transformers cannot save it alone, or not at another size
            continue
        if found is not None and _fits(tuple(tensor.shape), found, real):
            targets, steps = found
            if (targets, steps) != ((name,), ()):
                yield MemoryTensor(name, targets, steps)


def _numbered(like: Any, shape: Sequence[int]) -> Any:
    return like.new_tensor(list(range(prod(shape))), device="cpu").reshape(shape)


def _steps(source: Any, results: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Step, ...]] | None:
    """The patterns of the names and the steps that make `results` of `source`; None if there are none."""
    names = list(results)
    if len(names) == 1:
        return _moved(source, names, list(results.values()), ())
    for stacked in (True, False):
        slots = _slots(names) if stacked else {name: [name] for name in names}
        if slots is None or any(len(slot) != (_STACKED if stacked else 1) for slot in slots.values()):
            continue
        parts = [source]
        for axis in range(source.ndim):
            step: Step = ()
            if len(slots) > 1:
                if source.shape[axis] % len(slots):
                    continue
                parts = source.chunk(len(slots), axis)
                step = (("split", axis), ("parts", len(slots)))
            cut = [step, _UNSTACK] if stacked else [step]
            pieces = [piece for part in parts for piece in (part.unbind(0) if stacked else (part,))]
            wanted = [results[name] for slot in slots.values() for name in slot]
            if all(a.shape == b.shape and a.equal(b) for a, b in zip(pieces, wanted, strict=True)):
                return tuple(slots), tuple(filter(None, cut))
            if len(slots) == 1:
                break
    return None


def _moved(
    source: Any, names: Sequence[str], results: Sequence[Any], steps: tuple[Step, ...]
) -> tuple[tuple[str, ...], tuple[Step, ...]] | None:
    """A result whose axes are those of the source in another order."""
    for order in permutations(range(source.ndim)):
        moved = source.permute(order)
        if all(r.shape == moved.shape and r.equal(moved) for r in results):
            if order == tuple(range(source.ndim)):
                return tuple(names), steps
            letters = "abcd"[: source.ndim]
            text = f"{' '.join(letters)} -> {' '.join(letters[n] for n in order)}"
            return tuple(names), (*steps, (("rearrange", text),))
    return None


def _slots(names: Sequence[str]) -> dict[str, list[str]] | None:
    """Pattern with the index -> its names, where one number in the names counts from 0."""
    places = [[m.span() for m in NUMBER.finditer(name)] for name in names]
    for n in range(min(map(len, places), default=0)):
        slots: dict[str, list[str]] = {}
        for name, spans in zip(names, places, strict=True):
            start, end = spans[-1 - n]
            slots.setdefault(f"{name[:start]}{{{INDEX}}}{name[end:]}", []).append(name)
        if all(slot == [_filled(p, k) for k in range(len(slot))] and len(slot) > 1 for p, slot in slots.items()):
            return slots
    return None


def _filled(pattern: str, number: int) -> str:
    return pattern.replace(f"{{{INDEX}}}", str(number))


def _fits(shape: tuple[int, ...], found: tuple[tuple[str, ...], tuple[Step, ...]], real: Mapping[str, Any]) -> bool:
    """Whether the names at the real size are those of the patterns, and the parts are alike, as all steps make them."""
    targets, _ = found
    names = [_filled(p, k) for p in targets for k in range(shape[0] if f"{{{INDEX}}}" in p else 1)]
    shapes = [tuple(t.shape) for t in real.values()]
    return names == list(real) and len({*shapes}) == 1 and sum(map(prod, shapes)) == prod(shape)


def unsaved_names(model: Any) -> Iterator[str]:
    """Regular expressions of the names that a folder of the class does not have: those that the class says it ignores,
    and buffers that it computes."""
    yield from model._keys_to_ignore_on_save or ()
    yield from model._keys_to_ignore_on_load_unexpected or ()
    saved = model.state_dict().keys()
    computed = [name for name, _ in model.named_buffers() if name not in saved]
    yield from (f"^{re.escape(name)}$" for name in computed)
    if any(name.endswith("rotary_emb.inv_freq") for name in computed):
        yield r"rotary_emb\.inv_freq$"  # one for each layer in old checkpoints, which loading ignores


def shared_names(model: Any, state: Mapping[str, Any], tied: Iterable[str]) -> dict[str, str]:
    """Alias -> owner among the names of `state` that share a tensor; the owner is the name that saving writes.
    `tied`: patterns of the names that the class declares as aliases."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for name in state:
        groups[id(model.get_parameter_or_buffer(name))].append(name)
    patterns = list(tied)
    ties: dict[str, str] = {}
    for names in groups.values():
        bound = [name for name in sorted(names) if any(re.search(pattern, name) for pattern in patterns)]
        owner = next((name for name in names if name not in bound), bound[-1] if bound else names[0])
        ties |= {name: owner for name in names if name != owner}
    return ties

"""Tensors that belong to another tensor: the scales of a quantized matrix, the factors of an adapter.

`merge_companions` takes name families and returns the families that a rule converts, and for each of them which other
tensors the rule reads, the steps that combine them, and the open question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.draft.reshape_steps import Step
from compiler.draft.tensor_roles import NameFamily, assign_roles

BLOCK = "the number of scales does not determine the block size; read it from the trainer's config"
PACKED = "the target class may store this matrix transposed; check the order of the axes"
ADAPTER = "shapes do not reveal the scale of the adapter; this draft uses 1"


@dataclass(frozen=True)
class Companions:
    """`others` are read together with the tensor itself; `steps` combine them; `question` is what remains open."""

    others: tuple[str, ...]
    steps: tuple[Step, ...]
    question: str

    def names(self, whole: str) -> list[str]:
        """The tensors that a rule for `whole` reads. A matrix stored as blocks and scales has no tensor of its own name."""
        return [*self.others] if whole + "_blocks" in self.others else [whole, *self.others]


def merge_companions(families: Sequence[NameFamily]) -> tuple[list[NameFamily], dict[str, Companions]]:
    """The families without those that belong to another one, and the `Companions` of each, by the family's name."""
    named = {family.text: family for family in families}
    companions: dict[str, Companions] = {}
    made: dict[str, NameFamily] = {}
    taken: set[str] = set()
    pairs = [(f, named[f.text + "_scale_inv"]) for f in families if f.text + "_scale_inv" in named]
    pairs = [(f, scales) for f, scales in pairs if len(f.shape) == len(scales.shape) == 2]
    block = [_block([(w.shape[axis], s.shape[axis]) for w, s in pairs]) for axis in (0, 1)] if pairs else []
    for weight, scale in pairs:
        steps: tuple[Step, ...] = ({"dequantize": {"format": "blocks", "block": block}},)
        companions[weight.text] = Companions((scale.text,), steps, BLOCK)
        taken.add(scale.text)
    for family in families:
        stem = family.text.removesuffix("_blocks")
        if stem != family.text and stem + "_scales" in named and family.shape[-1:] == (16,) and len(family.shape) > 1:
            whole = family.with_shape(stem, (*family.shape[:-2], 32 * family.shape[-2]))
            made[family.text] = whole
            companions[stem] = Companions(
                (family.text, stem + "_scales"), ({"dequantize": {"format": "mxfp4"}},), PACKED
            )
            taken.add(stem + "_scales")
        for left, right in (("lora.A", "lora.B"), ("lora_A", "lora_B"), ("lora_A.default", "lora_B.default")):
            stem = family.text.removesuffix(".weight")
            one, other = f"{stem}.{left}.weight", f"{stem}.{right}.weight"
            if stem != family.text and one in named and other in named and named[one].shape:
                step: Step = {"lora": {"rank": named[one].shape[0]}}
                companions[family.text] = Companions((one, other), (step,), ADAPTER)
                taken |= {one, other}
    kept = [made.get(family.text, family) for family in families if family.text not in taken]
    return (assign_roles(kept) if made else kept), companions


def _block(pairs: Sequence[tuple[int, int]]) -> int:
    """The smallest block size that gives each (length, number of scales) of `pairs`."""
    most = max(length for length, _ in pairs)
    return next((n for n in range(1, most + 1) if all(-(-length // n) == count for length, count in pairs)), most)

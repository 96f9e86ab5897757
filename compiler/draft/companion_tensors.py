"""Tensors that mean something only together: a matrix and the scales of its blocks, a matrix and its adapter.

Takes forms; returns the forms that they stand for, and for each of those what else is read, by which steps, and the
question that remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compiler.draft.reshape_steps import Step
from compiler.draft.tensor_roles import NameFamily, roles

BLOCK = "the scales leave open how large a block is; the config says it"
PACKED = "the class may multiply from the other side; look whether the axes must be exchanged"
ADAPTER = "no shape tells the scale of the adapter; here it is 1"


@dataclass(frozen=True)
class Joint:
    """What is read beside the first tensor, in which steps it becomes one, and what is asked."""

    others: tuple[str, ...]
    steps: tuple[Step, ...]
    question: str

    def names(self, whole: str) -> list[str]:
        """All that is read for `whole`; where its parts have names of their own, it has none."""
        return [*self.others] if whole + "_blocks" in self.others else [whole, *self.others]


def united(forms: Sequence[NameFamily]) -> tuple[list[NameFamily], dict[str, Joint]]:
    """The forms with companions taken in, and the `Joint` of each by its name."""
    named = {form.text: form for form in forms}
    joints: dict[str, Joint] = {}
    made: dict[str, NameFamily] = {}
    taken: set[str] = set()
    pairs = [(f, named[f.text + "_scale_inv"]) for f in forms if f.text + "_scale_inv" in named]
    block = [_block([(w.shape[axis], s.shape[axis]) for w, s in pairs]) for axis in (0, 1)] if pairs else []
    for weight, scale in pairs:
        steps: tuple[Step, ...] = ({"dequantize": {"format": "blocks", "block": block}},)
        joints[weight.text] = Joint((scale.text,), steps, BLOCK)
        taken.add(scale.text)
    for form in forms:
        stem = form.text.removesuffix("_blocks")
        if stem != form.text and stem + "_scales" in named and form.shape[-1:] == (16,):
            whole = replace(form, text=stem, shape=(*form.shape[:-2], 32 * form.shape[-2]))
            made[form.text] = whole
            joints[stem] = Joint((form.text, stem + "_scales"), ({"dequantize": {"format": "mxfp4"}},), PACKED)
            taken.add(stem + "_scales")
        for left, right in (("lora.A", "lora.B"), ("lora_A", "lora_B"), ("lora_A.default", "lora_B.default")):
            stem = form.text.removesuffix(".weight")
            one, other = f"{stem}.{left}.weight", f"{stem}.{right}.weight"
            if stem != form.text and one in named and other in named:
                step: Step = {"lora": {"rank": named[one].shape[0]}}
                joints[form.text] = Joint((one, other), (step,), ADAPTER)
                taken |= {one, other}
    kept = [made.get(form.text, form) for form in forms if form.text not in taken]
    return (roles(kept) if made else kept), joints


def _block(pairs: Sequence[tuple[int, int]]) -> int:
    """The smallest size of a block with which every length has its number of scales."""
    most = max(length for length, _ in pairs)
    return next((n for n in range(1, most + 1) if all(-(-length // n) == count for length, count in pairs)), most)

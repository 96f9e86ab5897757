"""The element types of a GGUF file: a reversed Plan with the dtypes that the runtime of such files needs.

Vectors are always float32. `with_q8_0` stores matrices in blocks of 32 elements, and leaves the others as that runtime's
own converter does. Source: `prepare_tensors` of its convert_hf_to_gguf.py.
"""

from __future__ import annotations

from dataclasses import replace

from compiler.diagnostics import listed
from compiler.dtypes import BLOCKS, FLOATING
from compiler.ops.block_quantize import QuantizeQ8
from compiler.ops.structural import Cast
from compiler.plan.plan import Group, Plan

Q8_0 = QuantizeQ8.word
_PRECISE = "ffn_gate_inp.weight"  # what chooses the experts


def with_float32_vectors(plan: Plan) -> Plan:
    """The plan with every floating vector (norms, biases) in float32."""
    return replace(plan, groups=tuple(map(_with_float32_vectors, plan.groups)))


def with_q8_0(plan: Plan) -> Plan:
    """The plan with matrices in blocks of Q8_0: a row is a whole number of blocks. Those of other widths are float16."""
    return replace(plan, groups=tuple(map(_with_q8_0, plan.groups)))


def unquantized(plan: Plan) -> list[str]:
    """A sentence about the matrices that have no blocks, if there are any."""
    names = [f"{t.name} {list(t.shape)}" for t in plan.targets if t.dtype == "float16"]
    return [f"rows that are no blocks of {BLOCKS[Q8_0][0]} are float16: {listed(names, 4)}"] * bool(names)


def _with_float32_vectors(group: Group) -> Group:
    if not all(len(t.shape) < 2 and t.dtype in ("float16", "bfloat16") for t in group.target_list):
        return group
    return _cast(group, "float32")


def _with_q8_0(group: Group) -> Group:
    targets = group.target_list
    if not all(t.dtype in FLOATING for t in targets):
        return group
    if any(len(t.shape) < 2 or t.name.endswith(_PRECISE) for t in targets):
        return _cast(group, "float32")
    if any(t.shape[-1] % BLOCKS[Q8_0][0] for t in targets):
        return _cast(group, "float16")
    made = _cast(group, "float32")
    return replace(made, ops=(*made.ops, QuantizeQ8()), targets=made.targets.map(lambda t: replace(t, dtype=Q8_0)))


def _cast(group: Group, dtype: str) -> Group:
    return replace(group, ops=(*group.ops, Cast(dtype)), targets=group.targets.map(lambda t: replace(t, dtype=dtype)))

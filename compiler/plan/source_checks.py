"""What loads and would be wrong: quantized tensors without their scales, integers or complex numbers as weights, and
tensors of one rule whose shapes differ from layer to layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from compiler.diagnostics import listed, refuse
from compiler.plan.notes import IntegerTensors, Note, UnevenShapes
from compiler.plan.plan import Plan
from compiler.program.environment import Environment, TensorTable
from compiler.program.program import Program

# Integers of a width that no parameter has, and FP8, which spans too little without a scale; truths and complex numbers
# are no weights either.
TYPES = frozenset(
    ["int8", "uint8", "int16", "uint16", "uint32", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "bool", "complex64"]
)  # fmt: skip


def check_quantized(program: Program, env: Environment, signature: TensorTable) -> None:
    """Raises Refusal: `quantized-weights`."""
    scaled = [p for rule in program.rules for p in rule.sources if any(op.word == "dequantize" for op, _ in rule.steps)]
    known = [*scaled, *(pattern for pattern, _ in program.ignored)]
    found = [
        f"{name} ({tensor.dtype})"
        for name, tensor in signature.items()
        if tensor.dtype in TYPES and not any(env.match(pattern, name) is not None for pattern in known)
    ]
    if odd := [text for text in found if text.endswith(("(bool)", "(complex64)"))]:
        hint = "leave them out where the checkpoint is made, or `ignore` them in the spec"
        refuse(program.spec.path, f"no numbers that weights are: {listed(odd, 4)}", "unsupported-tensor", hint)
    if found:
        message = f"quantized weights, which are no numbers without their scales: {listed(found, 4)}"
        hint = "dequantize the model where it was made, or use a spec that reads the scales with `dequantize`"
        refuse(program.spec.path, message, "quantized-weights", hint)


def integer_tensors(plan: Plan) -> Iterator[Note]:
    """At most one note; tables of whole numbers exist, as parameters they are rare."""
    found = tuple((t.name, t.dtype) for t in plan.targets if t.dtype in ("int32", "int64") and len(t.shape) > 1)
    if found:
        yield IntegerTensors(found)


def uneven_shapes(plan: Plan) -> Iterator[Note]:
    """One note for each name pattern whose tensors, but for the numbers in their names alike, are of two shapes."""
    found: dict[tuple[int, int, tuple[str, ...]], list[tuple[str, tuple[int, ...]]]] = {}
    for group in plan.groups:
        for place, (pattern, slot) in enumerate(zip(group.rule.targets, group.targets.slots, strict=False)):
            for target in slot.values():
                captures = pattern.match(target.name) or {}
                words = tuple(text for hole, text in captures.items() if not pattern.holes[hole].is_index)
                key = (group.rule.span.line, place, words)
                found.setdefault(key, []).append((target.name, target.shape))
    for targets in found.values():
        shapes = Counter(shape for _, shape in targets)
        if len(shapes) > 1:
            (usual, count), *_ = shapes.most_common()
            yield UnevenShapes(usual, count, tuple((name, shape) for name, shape in targets if shape != usual))

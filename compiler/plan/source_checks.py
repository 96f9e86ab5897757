"""Checks of tensors that would load but are probably wrong: quantized tensors without scales, integers, bools or complex
numbers as weights, and tensors of one rule that differ in shape between layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from compiler.diagnostics import listed, refuse
from compiler.plan.notes import IntegerTensors, Note, UnevenShapes
from compiler.plan.plan import Plan
from compiler.program.environment import Environment, TensorTable
from compiler.program.program import Program

# Integer types that no parameter has; FP8, whose range is too small without a scale; bool and complex.
TYPES = frozenset(
    ["int8", "uint8", "int16", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "bool", "complex64"]
)  # fmt: skip

_PARAMETERS = ("weight", "bias")  # last components of names that no buffer has


def check_quantized(program: Program, env: Environment, signature: TensorTable) -> None:
    """Raises Refusal: `quantized-weights`."""
    scaled = [p for rule in program.rules for p in rule.sources if any(op.word == "dequantize" for op, _ in rule.steps)]
    known = [*scaled, *(pattern for pattern, _ in program.ignored)]
    suspicious = [
        f"{name} ({tensor.dtype})"
        for name, tensor in signature.items()
        if tensor.dtype in TYPES and not any(env.match(pattern, name) is not None for pattern in known)
    ]
    if odd := [text for text in suspicious if text.endswith(("(bool)", "(complex64)"))]:
        hint = "drop them when the checkpoint is written, or list them under `ignore` in the spec"
        refuse(
            program.spec.path,
            f"tensors of a type that weights never have: {listed(odd, 4)}",
            "unsupported-tensor",
            hint,
        )
    if suspicious:
        message = f"quantized weights without scales: {listed(suspicious, 4)}"
        hint = "dequantize the model in its own framework, or use a spec that reads the scales with `dequantize`"
        refuse(program.spec.path, message, "quantized-weights", hint)


def integer_tensors(plan: Plan) -> Iterator[Note]:
    """At most one note: buffers may be integers, such as tables of positions. Raises Refusal for weights and biases, which are
    never: Transformers would load quantized numbers as if they were the values. A spec that means them casts them."""
    integers = tuple((t.name, t.dtype) for t in plan.targets if t.dtype in ("int32", "int64"))
    if weights := [f"{name} ({dtype})" for name, dtype in integers if name.rpartition(".")[2] in _PARAMETERS]:
        hint = "if they are the values, cast them in the spec; else dequantize the model in its own framework"
        message = f"weights that are integers: {listed(weights, 4)}"
        refuse(plan.program.spec.path, message, "quantized-weights", hint)
    tables = {target.name for target in plan.targets if len(target.shape) > 1}
    if others := tuple(one for one in integers if one[0] in tables):
        yield IntegerTensors(others)


def uneven_shapes(plan: Plan) -> Iterator[Note]:
    """A note for each name pattern whose tensors, if they differ only in the numbers in their names, differ in shape.

    Few architectures intend that.
    """
    targets_by_pattern: dict[tuple[int, str, int, tuple[str, ...]], list[tuple[str, tuple[int, ...]]]] = {}
    for group in plan.groups:
        for place, (pattern, slot) in enumerate(zip(group.rule.targets, group.targets.slots, strict=False)):
            for target in slot.values():
                captures = pattern.match(target.name) or {}
                words = tuple(text for hole, text in captures.items() if not pattern.holes[hole].is_index)
                key = (group.rule.span.line, group.rule.name, place, words)
                targets_by_pattern.setdefault(key, []).append((target.name, target.shape))
    for targets in targets_by_pattern.values():
        shapes = Counter(shape for _, shape in targets)
        if len(shapes) > 1:
            (usual, count), *_ = shapes.most_common()
            yield UnevenShapes(usual, count, tuple((name, shape) for name, shape in targets if shape != usual))

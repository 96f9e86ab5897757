"""Weights that are numbers only together with their scales.

Takes a Program and the tensors of a checkpoint; refuses quantized ones that no `dequantize` of the spec reads, since
copied or cast they would load without a complaint and mean nothing.
"""

from __future__ import annotations

from compiler.diagnostics import listed, refuse
from compiler.environment import Signature
from compiler.program import Program

# Integers of a width that no parameter has, and FP8, which spans too little without a scale.
TYPES = frozenset(
    ["int8", "uint8", "int16", "uint16", "uint32", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]
)  # fmt: skip


def check_quantized(program: Program, signature: Signature) -> None:
    """Raises Refusal: `quantized-weights`."""
    scaled = [p for rule in program.rules for p in rule.sources if any(op.word == "dequantize" for op, _ in rule.steps)]
    known = [*scaled, *(pattern for pattern, _ in program.ignored)]
    found = [
        f"{name} ({tensor.dtype})"
        for name, tensor in signature.items()
        if tensor.dtype in TYPES and not any(pattern.match(name) is not None for pattern in known)
    ]
    if found:
        message = f"quantized weights, which are no numbers without their scales: {listed(found, 4)}"
        hint = "dequantize the model where it was made, or use a spec that reads the scales with `dequantize`"
        refuse(program.spec.path, message, "quantized-weights", hint)

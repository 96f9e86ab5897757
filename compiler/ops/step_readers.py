"""Word of the language -> the reader of its op, collected from the modules of ops.

A new module of ops is added to `MODULES`.
"""

from __future__ import annotations

from compiler.diagnostics import refuse
from compiler.language.spec import STEP_MODIFIERS
from compiler.ops import arithmetic, lossy, rearrange_notation, structural
from compiler.ops.algebra import Op
from compiler.ops.written_step import StepReader, WrittenStep

MODULES = (structural, rearrange_notation, arithmetic, lossy)
READERS: dict[str, StepReader] = {word: reader for module in MODULES for word, reader in module.READERS.items()}


def read_op(written: WrittenStep) -> Op:
    """The op that a step writes. Raises Refusal: `unknown-key`, and what the op's own reader raises."""
    word, values = written.step.word, written.step.values
    reader = READERS[word]
    for key in STEP_MODIFIERS:
        if key in values and key not in reader.modifiers:
            refuse(values[key].span, f"{word} has no key {key!r}", "unknown-key")
    return reader.read(written)

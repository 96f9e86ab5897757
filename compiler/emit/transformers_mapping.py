"""Renders the mapping of a Program in the form of Transformers 5: WeightRenaming and WeightConverter, and a function that
registers them for the target class.

An operation of Transformers is used where it does exactly what a rule does; other rules become functions of torch. Sizes
come from the model's config; what that lacks is a parameter. Source: transformers 5.24.0, core_model_loading.py and
conversion_mapping.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from compiler.diagnostics import Diagnostic, Refusal, Span
from compiler.emit.class_mapping import Conversion
from compiler.emit.config_sizes import HOLDER, ConfigSizes, parameters
from compiler.emit.fused import in_memory, row_name
from compiler.emit.patterns import Converter, patterns
from compiler.emit.rows import FOLDED, Row, heading, inexpressible, rows, sample
from compiler.language.expression import Expr
from compiler.language.name_pattern import Pattern
from compiler.ops import rearrange_notation
from compiler.ops.algebra import Op
from compiler.ops.lossy import Lossy
from compiler.ops.structural import Cast, Concat, Copy, Rearrange, Split, Stack
from compiler.program.program import Program
from compiler.render.index_range import RESERVED
from compiler.render.python_source import inside, quoted, raw
from compiler.render.rule_function import Functions, kernel_text, short_names
from compiler.target.class_signature import ClassSignature
from compiler.templating import environment, formatted

FORM = "the mapping of Transformers"
HEADS = f"{HOLDER}.num_attention_heads"  # by which PermuteForRope counts heads
_OWN = frozenset([HOLDER, "conversion_mapping", "register", "TensorOperation"])


def render(program: Program, signatures: Sequence[ClassSignature], stated: Sequence[Conversion]) -> str:
    """The text of the module. `signatures`: the class, as the examples of the spec configure it; `stated`: what
    Transformers itself does to the names of the class.

    Raises Refusal: `inexpressible-rule`, for every rule that the form cannot express.
    """
    found = rows(program, FORM, _problem)
    entries = patterns(in_memory(found, [tensor for signature in signatures for tensor in signature.memory]))
    problems: list[Diagnostic] = []
    for converter in entries.converters:
        if (match := _renamed_by_class(converter, stated)) is not None:
            text = f"the class's own renaming of {match} changes the names that {converter.row.rule.name} reads"
            problems.append(inexpressible(converter.row.rule.span, text))
    if problems:
        raise Refusal(problems)
    sizes = ConfigSizes(program.spec)
    flat = {row_name(name) for signature in signatures for name, shape in signature.shapes.items() if len(shape) <= 2}
    operations = _Operations(sizes, flat)
    converters = [(_texts(c.sources), _texts(c.targets), operations.of(c)) for c in entries.converters]
    context = {
        **heading(program),
        "renamings": [(_text(r.source), _text(r.target)) for r in entries.renamings],
        "converters": converters,
        "operations": sorted(operations.used),
        "own": operations.own,
        "one_way": operations.one_way,
        "functions": operations.functions.made,
        "kernels": [kernel_text(name) for name in sorted(operations.functions.kernels)],
        "concat": "concat" in sizes.helpers,
        "parameters": parameters(sizes),
        "ignored": [(pattern.text, inside(reason)) for pattern, reason in program.ignored],
    }
    return formatted(environment().get_template("emit/transformers.py.jinja").render(**context))


def _problem(row: Row) -> str:
    """What the form lacks for a row; empty where it has all."""
    if row.ops and len(row.sources) > 1 and len(row.targets) > 1:
        return "it makes several tensors of several"
    for op in row.ops:
        if any(isinstance(size, Expr) and size.asked for size in op.sizes_used()):
            return "a size reads other tensors of the checkpoint"
        match op:
            case Lossy() if any(op.from_dtypes):
                return "loading casts stored tensors to the dtype of the parameter before an operation sees them"
            case Cast():
                return "the dtype is that of from_pretrained"
            case Copy():
                return "an operation that makes copies would share their memory"
            case Stack() if row.ops.index(op) > 0 or any(isinstance(o, Stack) for o in row.ops[1:]):
                return "an index can be folded in the first step only"
    return ""


def _renamed_by_class(converter: Converter, stated: Sequence[Conversion]) -> str | None:
    """The pattern of a renaming that also matches the names of a converter, if there is one. All renamings come before
    the converters."""
    for entry in stated:
        for pattern in entry.sources if not entry.operations else ():
            if any(re.search(pattern, sample(source)) for source in (*converter.sources, *converter.row.sources)):
                return pattern
    return None


class _Operations:
    """The code of the operations of converters. `used`: the names of Transformers' own; `own`: whether a function is used;
    `one_way`: why saving cannot undo some of them; `flat`: the names of the class's tensors with at most two axes."""

    def __init__(self, sizes: ConfigSizes, flat: Collection[str]) -> None:
        self.sizes, self.flat = sizes, flat
        self.functions = Functions(sizes, RESERVED | _OWN)
        self.used: set[str] = set()
        self.own = False
        self.one_way: list[str] = []

    def of(self, converter: Converter) -> list[str]:
        """The operations of a converter, in order."""
        ops = converter.row.ops
        found: list[str] = []
        if ops and isinstance(ops[0], Stack):
            found.append(f"MergeModulelist(dim={ops[0].axis})")
            ops = ops[1:]
        code = self.known(ops, converter.row) if ops else ""
        if ops:
            found.append(code or self.function(converter.row, ops))
        self.used |= {name for text in found if (name := text.partition("(")[0]) != "TensorOperation"}
        return found

    def known(self, ops: Sequence[Op], row: Row) -> str:
        """The operation of Transformers that does the same as one step; empty where there is none."""
        sources, targets = len(row.sources), len(row.targets)
        if len(ops) != 1:
            return ""
        match ops[0]:
            case Concat(axis=axis, sizes=None) if targets == 1:
                return f"Concatenate(dim={axis})"
            case Split(axis=axis, sizes=None, parts=parts) if parts == targets:
                return f"Chunk(dim={axis})"
            case Split(axis=axis, sizes=[*_], parts=parts) if parts == targets:
                return f"Split(dim={axis})"  # whose sizes are those of the parameters
            case Rearrange() as op if str(op) == rearrange_notation.TRANSPOSE and (sources, targets) == (1, 1):
                return "Transpose(dim0=0, dim1=1)"
            case Rearrange() as op if (sources, targets) == (1, 1) and row.targets[0] in self.flat:
                given = {axis: self.sizes.size(size) for axis, size in op.sizes}
                if given == {"head": HEADS, "two": "2"} and str(op) == rearrange_notation.ROPE_TO_HALF:
                    return "PermuteForRope()"
                if given == {"head": HEADS, "two": "2"} and str(op) == rearrange_notation.ROPE_TO_INTERLEAVED:
                    return "PermuteForRope(inverse=True)"
        return ""

    def function(self, row: Row, ops: Sequence[Op]) -> str:
        """A TensorOperation that calls functions of torch."""
        self.own = True
        sources = short_names(row.rule.sources if len(row.rule.sources) == len(row.sources) else _patterns(row.sources))
        targets = short_names(row.rule.targets if len(row.rule.targets) == len(row.targets) else _patterns(row.targets))
        forward = self.call(ops, sources, targets, row.rule.name)
        loss = next((op.loss for op in ops if op.loss), "")
        if loss:
            self.one_way.append(f"{row.rule.name}: {inside(loss)}")
            return f"TensorOperation({forward})"
        back = self.call([op.inverse() for op in reversed(ops)], targets, sources, row.rule.name)
        return f"TensorOperation({forward}, {back})"

    def call(self, ops: Sequence[Op], sources: list[str], targets: list[str], rule: str) -> str:
        code = self.functions.call(ops, [*sources], sources, targets, rule)
        return f"lambda {HOLDER}, {', '.join(sources)}: {f'({code})' if code.count(',') and '(' not in code else code}"


def _patterns(names: Sequence[str]) -> list[Pattern]:
    return [Pattern(name, (re.sub(rf"[#{FOLDED}]", "0", name),), Span("")) for name in names]


def _text(pattern: str) -> str:
    return raw(pattern) if "\\" in pattern else quoted(pattern)


def _texts(names: Sequence[str]) -> str:
    texts = [quoted(name) for name in names]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"

"""Rows for a class whose model in memory has other tensors than its folders.

Transformers renames and fuses some tensors when it loads a folder. A mapping converts a tensor once: a renamed tensor goes
on through the class's own mapping, but what a step makes must be what the model has in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from compiler.diagnostics import Diagnostic, Refusal
from compiler.emit.rows import FOLDED, INDEX, Row, comparable, inexpressible
from compiler.ops.algebra import Op
from compiler.ops.structural import Concat, Rearrange, Split, Unstack
from compiler.target.class_signature import MemoryTensor
from compiler.target.memory_layout import INDEX as HOLE

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def in_memory(rows: Sequence[Row], memory: Iterable[MemoryTensor]) -> list[Row]:
    """The rows, where those with steps write the tensors of `memory`. Raises Refusal: `inexpressible-rule`."""
    problems: list[Diagnostic] = []
    unique = [*{row_name(tensor.name): tensor for tensor in memory}.values()]
    renamed = {row_name(t.targets[0]): row_name(t.name) for t in unique if not t.steps}
    made = {tensor: tuple(map(row_name, tensor.targets)) for tensor in unique if tensor.steps}
    # Where the class fuses renamed tensors, its own renamings are in use, and saving undoes them for all names.
    fused = {target.replace(FOLDED, INDEX) for targets in made.values() for target in targets}
    left = any(not row.ops and fused & {*row.targets} for row in rows)
    rows = [
        replace(row, targets=tuple(renamed.get(target, target) for target in row.targets))
        if row.ops or not left
        else row
        for row in rows
    ]
    writers = {target: row for row in rows if row.ops for target in row.targets}
    done: set[Row] = set()
    found: list[Row] = []
    for tensor, targets in made.items():
        if not (used := [*dict.fromkeys(writers[target] for target in targets if target in writers)]):
            continue
        row = _joined(tensor, targets, used) if all(target in writers for target in targets) else None
        if row is None:
            text = (
                f"the class fuses {row_name(tensor.name)} of {', '.join(targets)} when it loads a folder, and a mapping"
            )
            text += f" converts a tensor once; {used[0].rule.name} makes the parts in a way that is not undone by that"
            problems.append(inexpressible(used[0].rule.span, text))
        else:
            found.append(row)
        done |= {*used}
    opened = [row for row in rows if row not in done and any(isinstance(op, Unstack) for op in row.ops)]
    for row in opened:
        message = f"a mapping cannot take {row.rule.name} apart into tensors with numbers"
        problems.append(inexpressible(row.rule.span, message))
    if problems:
        raise Refusal(problems)
    return [*(row for row in rows if row not in done), *found]


def _joined(tensor: MemoryTensor, targets: tuple[str, ...], used: Sequence[Row]) -> Row | None:
    """The row that writes a fused tensor from the sources of the rows that write its parts, or None."""
    name, steps = row_name(tensor.name), [dict(step) for step in tensor.steps]
    first = used[0]
    split = next((step for step in steps if "split" in step), None)
    if not any(step.get("unstack") == HOLE for step in steps) or any("rearrange" in step for step in steps):
        return None
    shapes = [[*_around(row.ops)] for row in used]
    if any(len(each) != 1 for each in shapes):
        return None
    before = shapes[0][0][0]
    if any(comparable(each[0][0]) != comparable(before) for each in shapes):
        return None
    cut = [each[0][1] for each in shapes]
    if split is None:
        return Row(first.rule, first.sources, (name,), before) if len(used) == 1 and cut == [None] else None
    axis, parts = int(split["split"]), int(split["parts"])
    if len(used) == 1:  # one source has all parts
        return (
            Row(first.rule, first.sources, (name,), before)
            if cut == [(axis, parts)] and first.targets == targets
            else None
        )
    if cut != [None] * len(used) or any(len(row.sources) != 1 or len(row.targets) != 1 for row in used):
        return None
    order = sorted(used, key=lambda row: targets.index(row.targets[0]))
    return Row(order[0].rule, tuple(row.sources[0] for row in order), (name,), (*before, Concat(axis, parts)))


def _around(ops: tuple[Op, ...]) -> Iterator[tuple[tuple[Op, ...], tuple[int, int] | None]]:
    """The rearrangements that precede one `unstack` along axis 0, and the equal split of the complete tensor beside it."""
    opened = [n for n, op in enumerate(ops) if isinstance(op, Unstack)]
    if len(opened) != 1 or ops[opened[0]].axis != 0:  # type: ignore[attr-defined]
        return
    before, after = ops[: opened[0]], ops[opened[0] + 1 :]
    cut = None
    if after and isinstance(after[0], Split) and after[0].sizes is None and after[0].axis >= 0:
        cut, after = (after[0].axis + 1, after[0].parts), after[1:]
    elif before and isinstance(before[-1], Split) and before[-1].sizes is None and before[-1].axis > 0:
        cut, before = (before[-1].axis, before[-1].parts), before[:-1]
    if not after and all(isinstance(op, Rearrange) and not op.only for op in before):
        yield before, cut


def row_name(name: str) -> str:
    """The name of a tensor as rows have it."""
    return _NUMBER.sub(INDEX, name.replace(f"{{{HOLE}}}", FOLDED))

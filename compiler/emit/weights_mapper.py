"""Renders the names of a Program as a WeightsMapper of vLLM, which renames tensors before a model loads them.

A WeightsMapper has tables of regular expressions, parts, prefixes and suffixes of names, tried in this order, every entry on
every name. It has no operations: vLLM itself joins projections and splits them among ranks. As in `patterns`, the shortest
form of an entry is used that leaves all other names alone. Source: WeightsMapper._map_name in
vllm/model_executor/models/utils.py of vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from compiler.diagnostics import Refusal
from compiler.emit.patterns import stem_of, stems_of, trimmed
from compiler.emit.rows import INDEX, Row, heading, inexpressible, rows, sample, without_groups
from compiler.program.program import Program
from compiler.render.python_source import inside, quoted, raw
from compiler.templating import environment, formatted

FORM = "a WeightsMapper of vLLM"
LEVELS = 3  # a part of the name, its end, the complete name


@dataclass
class Tables:
    """The tables of a mapper, and the rows that each entry is for: (table, old text) -> rows."""

    regex: dict[str, str] = field(default_factory=dict)
    substr: dict[str, str] = field(default_factory=dict)
    prefix: dict[str, str] = field(default_factory=dict)
    suffix: dict[str, str] = field(default_factory=dict)
    owners: dict[tuple[str, str], set[Row]] = field(default_factory=dict)

    def add(self, table: str, old: str, new: str, row: Row) -> None:
        getattr(self, table)[old] = new
        self.owners.setdefault((table, old), set()).add(row)

    def steps(self, name: str) -> list[tuple[tuple[str, str], str]]:
        """What a mapper does to a name: each entry that matches, and the name after it."""
        found = []
        for old, new in self.regex.items():
            if re.search(old, name):
                name = re.sub(old, new, name)
                found.append((("regex", old), name))
        for table, matches in (("substr", str.__contains__), ("prefix", str.startswith), ("suffix", str.endswith)):
            for old, new in getattr(self, table).items():
                if matches(name, old):
                    name = new.join(name.rsplit(old, 1)) if table == "suffix" else name.replace(old, new, 1)
                    found.append(((table, old), name))
        return found


def render(program: Program) -> str:
    """The text of the module. Raises Refusal: `inexpressible-rule`."""
    found = rows(program, FORM, lambda row: "it renames tensors and changes none" if row.ops else "")
    tables = _tables(found)
    context = {
        **heading(program),
        "regex": [(raw(old), raw(new)) for old, new in tables.regex.items()],
        "tables": [
            (table, [(quoted(old), quoted(new)) for old, new in getattr(tables, table).items()])
            for table in ("substr", "prefix", "suffix")
        ],
        "ignored": [(raw(f"^{without_groups(pattern)}$"), inside(reason)) for pattern, reason in program.ignored],
    }
    return formatted(environment().get_template("emit/vllm.py.jinja").render(**context))


def _tables(found: Sequence[Row]) -> Tables:
    """The tables of the rows. Raises Refusal: `inexpressible-rule`, where no form tells two names apart."""
    stems, levels = stems_of(found), dict.fromkeys(found, 0)
    for _ in range(LEVELS * len(found) + 1):
        tables = Tables()
        for row in found:
            _enter(tables, row, stems, levels[row])
        wrong = next((w for row in found if (w := _wrong(tables, row))), None)
        if wrong is None:
            return tables
        raised = [row for row in wrong if levels[row] < LEVELS - 1]
        if not raised:
            row = next(iter(wrong))
            message = f"no entry of {FORM} tells {sample(row.sources[0])} from the other names"
            raise Refusal([inexpressible(row.rule.span, message)])
        for row in raised:
            levels[row] += 1
    raise AssertionError("a row is raised in every turn")


def _enter(tables: Tables, row: Row, stems: dict[str, str], level: int) -> None:
    source, target, stem = row.sources[0], row.targets[0], stem_of(row.sources[0])
    wanted = stems.get(stem, stem)
    if level == LEVELS - 1 or wanted != stem_of(target):
        old = re.escape(source)
        for n in range(1, source.count(INDEX) + 1):
            old, target = old.replace(re.escape(INDEX), r"(\d+)", 1), target.replace(INDEX, rf"\{n}", 1)
        tables.add("regex", f"^{old}$", target, row)
        return
    if wanted != stem:
        tables.add("prefix", stem, wanted, row)
    if not stem:
        old, new = trimmed(source, target) if level == 0 else (source, target)
        if old != new:
            tables.add("prefix", old, new, row)
        return
    one, other = source.removeprefix(stem + INDEX), target.removeprefix(wanted + INDEX)
    if one == other:
        return
    if level == 0:
        one, other = trimmed(one, other)
    if INDEX in one or INDEX in other:
        tables.add("regex", re.escape(one).replace(re.escape(INDEX), r"(\d+)", 1), other.replace(INDEX, r"\1", 1), row)
    else:
        tables.add("substr" if one.endswith(".") else "suffix", one, other, row)


def _wrong(tables: Tables, row: Row) -> set[Row]:
    """The rows of the first entry that changes the name of a row and is not its own; the row, if its entries make another
    name of it; else none."""
    name = sample(row.sources[0])
    for entry, after in tables.steps(name):
        if row not in tables.owners[entry]:
            return tables.owners[entry]
        name = after
    return set() if name == sample(row.targets[0]) else {row}

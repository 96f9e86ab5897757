"""The numbers that an index of a source name goes through, as code: `range(f.n_layers)`.

Takes a Program. Returns, for each index of its patterns, the range that a converter loops over. The range comes from the
condition that the spec gives under `indices`, else from a fact that counts names with the same text before the index,
else from a count that the converter makes itself.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from compiler.diagnostics import Span
from compiler.language.expression import Expr, alternatives
from compiler.language.name_pattern import Hole, Part, Pattern, options
from compiler.language.name_pattern_parser import parse_pattern
from compiler.program.program import Program, Rule
from compiler.render.python_source import ExprPrinter, names_regex, opposite, quoted, raw

# Names that the code of a converter uses itself, which no variable and no function of a rule may take.
_LOCAL = [
    "alias", "complete", "each", "equal", "f", "fits", "found", "joined", "match", "name", "new", "numbers", "old", "owner",
    "result", "source", "w",
]  # fmt: skip
_PYTHON = ["bool", "dict", "enumerate", "int", "len", "list", "max", "min", "range", "sum", "zip"]
_IMPORTED = ["json", "math", "re", "torch", "Iterator", "Namespace", "Path", "Sequence", "Tensor", "Parts", "Loader"]
_CHECKING = ["require", "check_class", "JOINS"]
_LOADING = ["load_state_dict", "load_torch_file", "flattened", "unique", "scaling", "read_sizes", "convert_config"]
_CONVERTING = ["matches", "same", "concat", "stack", "convert_state_dict", "write_weights", "main"]
_KERNELS = ["full", "pad", "affine", "normalize", "add_parts", "dequantize_blocks", "dequantize_mxfp4", "add_low_rank"]
RESERVED = frozenset([*_LOCAL, *_PYTHON, *_IMPORTED, *_CHECKING, *_LOADING, *_CONVERTING, *_KERNELS])


@dataclass(frozen=True)
class IndexRange:
    """A loop over an index: `variable` takes the values of `code`.

    `count` is an assignment that `code` needs. It must run before any tensor is popped. `certain` means that
    `read_sizes` rejects a checkpoint for which the range is empty. `always` means that a checkpoint for which the range
    is empty is incomplete, whatever its arguments are. `shared` means that the count is made once for all conditions.
    """

    variable: str
    code: str
    count: str = ""
    certain: bool = False
    always: bool = False
    shared: bool = False
    names: str = ""  # the pattern of the names that have the index


class IndexRanges:
    """The ranges of one program, and the variables of its converter: one variable for one range."""

    def __init__(self, program: Program, printer: ExprPrinter) -> None:
        self.program, self.printer = program, printer
        self.facts = dict(_counting_facts(program))
        self.there = set(_prefixes_there(program))
        # Text before an index -> condition, or "" -> names of one rule that have it.
        self.readers: dict[str, dict[str, tuple[Pattern, Hole]]] = {}
        for rule in program.rules:
            for each in by_prefix(rule) if all(map(listable, rule.sources)) else ():
                for hole in [hole for hole in each.sources[0].holes.values() if hole.is_index]:
                    if not hole.shift and hole.name not in program.spec.indices:
                        readers = self.readers.setdefault(prefix(each.sources[0], hole), {})
                        readers.setdefault(rule.when.text if rule.when else "", (each.sources[0], hole))
        self.variables: dict[str, str] = {}  # variable -> the range that it goes through
        self.counts: dict[str, IndexRange] = {}  # text before an index -> its range

    def of(self, patterns: Sequence[Pattern], name: str, when: Expr | None = None) -> IndexRange:
        """The range of the index `name` in the source patterns of a rule with the condition `when`."""
        found = self.found(patterns, name, when)
        return found if found.names else replace(found, names=patterns[0].text)

    def found(self, patterns: Sequence[Pattern], name: str, when: Expr | None) -> IndexRange:
        holes = [(pattern, pattern.holes[name]) for pattern in patterns]
        pattern, hole = next((pair for pair in holes if prefix(*pair) in self.facts), holes[0])
        before, shift = prefix(pattern, hole), hole.shift
        fact = f"f.{self.facts[before]}" if before in self.facts else ""
        # What is counted: names that every checkpoint has, else those of the one condition, else of all conditions.
        readers = self.readers.get(before, {})
        shared = "" in readers or len(readers) > 1
        counted = [readers[""]] if "" in readers else [*readers.values()] if shared else [(pattern, hole)]
        group = when.text if when and not shared else ""
        if name in self.program.spec.indices:
            guard = self.program.spec.indices[name]
            if code := self.interval(guard, name):
                return IndexRange(self.variable(name, code), code)
            whole = f"range({fact or self.beyond(counted)})"
            variable = self.variable(name, f"{whole} {guard.text}")
            condition = ExprPrinter("f", self.printer.helpers, name, variable)(guard)
            code = f"[{variable} for {variable} in {whole} if {condition}]"
            key = f"{before} {guard.text} {group}"
            return IndexRange(variable, code) if fact else self.own(name, key, code, "{}", shared=shared)
        if fact:
            code = f"range({_bounds(fact, shift)})"
            return IndexRange(
                self.variable(name, code), code, certain=before in self.there and not shift, always=not shift
            )
        parents = re.findall(r"[A-Za-z_]\w*", before)
        stem = parents[-1] if before.endswith(".") and parents else f"{name}_count"
        bounds = _bounds("{}", shift) if shared or shift < 0 else "{}"
        certain = before in self.there and not shift
        key, code = f"{before} {shift} {group}", self.counted(counted)
        return self.own(name, key, code, f"range({bounds})", stem, certain, shared)

    def own(
        self, name: str, key: str, code: str, loop: str, stem: str = "", certain: bool = False, shared: bool = False
    ) -> IndexRange:
        """A range whose length is counted into a variable. `loop` is the code of the range, with {} for that variable."""
        if key not in self.counts:
            counter = self.variable(stem or f"{name}_numbers", code)
            variable = self.variable(name, f"{loop} {counter}")
            self.counts[key] = IndexRange(variable, loop.format(counter), f"{counter} = {code}", certain, shared=shared)
        return self.counts[key]

    def counted(self, readers: Sequence[tuple[Pattern, Hole]]) -> str:
        """How many values an index has in the names of the source, of one rule or of several."""
        self.printer.helpers.add("matches")
        pattern, hole = readers[0]
        others = [h for h in pattern.holes.values() if h is not hole]
        if (
            len(readers) == 1
            and not hole.shift
            and not any(h.shift or h.name in self.program.spec.indices for h in others)
        ):
            zero = {h.name: "0" if h.is_index else words(h)[0] for h in others}
            return f"len(matches(source, {raw(names_regex(fixed(pattern, zero)))}))"
        number = f"match[{quoted(hole.name)}]"
        least = f" if int({number}) >= {hole.shift}" if hole.shift > 0 else ""
        return f"len({{{number} for match in matches(source, {raw(_numbers_regex(readers))}){least}}})"

    def beyond(self, readers: Sequence[tuple[Pattern, Hole]]) -> str:
        """One more than the highest value of an index whose guard may leave out lower ones."""
        self.printer.helpers.add("matches")
        number = f"int(match[{quoted(readers[0][1].name)}])"
        return f"max(({number} for match in matches(source, {raw(_numbers_regex(readers))})), default=-1) + 1"

    def interval(self, guard: Expr, name: str) -> str:
        """`range(a, b)` for a condition `a <= index < b`; empty for any other condition."""
        tree = guard.tree
        if not isinstance(tree, ast.Compare):
            return ""
        values = [tree.left, *tree.comparators]
        mine = [n for n, value in enumerate(values) if isinstance(value, ast.Name) and value.id == name]
        if len(mine) != 1 or sum(isinstance(n, ast.Name) and n.id == name for n in ast.walk(tree)) != 1:
            return ""
        low, high = "", ""
        for n, sign in enumerate(tree.ops):
            if mine[0] not in (n, n + 1):
                return ""
            other = self.printer.code(values[n + 1 if mine[0] == n else n])
            below = isinstance(sign, ast.Lt | ast.LtE)
            if not below and not isinstance(sign, ast.Gt | ast.GtE):
                return ""
            strict = isinstance(sign, ast.Lt | ast.Gt)
            smaller = below == (mine[0] == n)  # whether the index is on the smaller side
            if high if smaller else low:
                return ""
            if smaller:
                high = other if strict else f"({other}) + 1"
            else:
                low = f"({other}) + 1" if strict else other
        return f"range({low}, {high})" if low and high else f"range({high})" if high else ""

    def variable(self, wanted: str, code: str) -> str:
        """A variable for a range. The same range always gets the same variable."""
        for name in _candidates(wanted):
            if self.variables.setdefault(name, code) == code:
                return name
        raise AssertionError(wanted)


def _candidates(wanted: str) -> Iterator[str]:
    if not keyword.iskeyword(wanted) and wanted not in RESERVED:
        yield wanted
    if len(wanted) == 1:
        yield from (letter for letter in "ijkmn" if letter != wanted)
    yield from (f"{wanted}_{n}" for n in range(2, 1_000_000))


def _bounds(count: str, shift: int) -> str:
    """The arguments of `range` for an index to which names add `shift`, where names have the numbers below `count`."""
    return f"{-shift}, {count} + {-shift}" if shift < 0 else f"{count} - {shift}" if shift else count


# ---------------------------------------------------------------------------------------------------------------------
# Patterns


def fixed(pattern: Pattern, words: Mapping[str, str]) -> Pattern:
    """The pattern with some of its holes replaced by texts."""
    parts: list[Part] = []
    for part in pattern.parts:
        text = words.get(part.name) if isinstance(part, Hole) else part if isinstance(part, str) else None
        if text is None:
            parts.append(part)
        elif parts and isinstance(parts[-1], str):
            parts[-1] += text
        else:
            parts.append(text)
    return replace(pattern, parts=tuple(parts))


def choices(patterns: Iterable[Pattern], holes: Iterable[str]) -> Iterator[dict[str, str]]:
    """Every choice of words for some holes of a rule."""
    known = {name: hole for pattern in patterns for name, hole in pattern.holes.items()}
    names = [*holes]
    for texts in product(*(words(known[name]) for name in names)):
        yield dict(zip(names, texts, strict=True))


def words(hole: Hole) -> tuple[str, ...]:
    """The words that a hole stands for, as the spec lists them."""
    found = options(hole) or ()
    written = tuple(hole.regex.split("|"))
    return written if sorted(written) == sorted(found) else found


def by_prefix(rule: Rule) -> Iterator[Rule]:
    """The rule, once for each choice of the words before its last index: the range of an index depends on them."""
    holes = rule.sources[0].holes
    last = max((n for n, hole in enumerate(holes.values()) if hole.is_index), default=-1)
    before = [name for name in [*holes][: max(last, 0)] if not holes[name].is_index]
    for choice in choices([rule.sources[0]], before):
        sources = tuple(fixed(pattern, choice) for pattern in rule.sources)
        yield replace(rule, sources=sources, targets=tuple(fixed(pattern, choice) for pattern in rule.targets))


def _numbers_regex(readers: Sequence[tuple[Pattern, Hole]]) -> str:
    """The names of one rule or of several, with a group for the index."""
    pattern, hole = readers[0]
    regex = names_regex(pattern, {hole.name})
    if len(readers) == 1:
        return regex
    start = regex.partition(f"(?P<{hole.name}>")[0] + f"(?P<{hole.name}>\\d+)"
    rests = [names_regex(replace(p, parts=p.parts[p.parts.index(h) + 1 :])) for p, h in readers]
    return f"{start}(?:{'|'.join(dict.fromkeys(rests))})"


def listable(pattern: Pattern) -> bool:
    """Whether the names of a pattern follow from the numbers of its indices."""
    return all(isinstance(p, str) or (isinstance(p, Hole) and (p.is_index or options(p))) for p in pattern.parts)


def prefix(pattern: Pattern, hole: Hole) -> str:
    """The text before an index, with # for each index in it."""
    text = ""
    for part in pattern.parts:
        if isinstance(part, Hole) and part.name == hole.name:
            break
        text += part if isinstance(part, str) else "#" if isinstance(part, Hole) and part.is_index else f"<{part}>"
    return text


def _counting_facts(program: Program) -> Iterator[tuple[str, str]]:
    """Pairs of the text before an index and the fact that counts its values.

    Such a fact is `count(pattern)` without further arithmetic. Its pattern has one index, and some rule reads its names
    from every checkpoint.
    """
    for name, fact in program.spec.facts.items():
        tree = fact.tree
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.func.id != "count":
            continue
        each: list[tuple[Pattern, Hole]] = []
        for pattern in [parse_pattern(text, Span("")) for _, text, _ in fact.asked]:
            indices = [hole for hole in pattern.holes.values() if hole.is_index]
            if len(indices) != 1 or indices[0].shift or not listable(pattern):
                break
            others = [hole for hole in pattern.holes if hole != indices[0].name]
            each += [(fixed(pattern, choice), indices[0]) for choice in choices([pattern], others)]
        else:
            guards = [_guards(program, one.fill({hole.name: "0"}), prefix(one, hole)) for one, hole in each]
            if (len(each) == 1 and _covers(guards[0])) or (len(each) > 1 and _either(guards)):
                for one, hole in each:
                    yield prefix(one, hole), name


def _guards(program: Program, name: str, before: str) -> set[str]:
    """The conditions of the rules that read a name for every value of its index; "" for a rule without a condition."""
    found = set()
    for rule in program.rules:
        for pattern in rule.sources:
            captures = pattern.match(name)
            if captures is None or not listable(pattern):
                continue
            same = fixed(pattern, {h: text for h, text in captures.items() if not pattern.holes[h].is_index})
            index = [h for h in same.holes.values() if prefix(same, h) == before]
            if index and index[0].name not in program.spec.indices and not index[0].shift:
                found.add(rule.when.text if rule.when else "")
    return found


def _covers(guards: set[str]) -> bool:
    """Whether one of the conditions holds in every checkpoint."""
    return "" in guards or any(opposite(a, b) for a in guards for b in guards)


def _either(guards: list[set[str]]) -> bool:
    """Whether exactly one of two sets of names is read from each checkpoint."""
    if len(guards) != 2:
        return False
    first, second = guards
    return any(opposite(a, b) or opposite(b, a) for a in first for b in second)


def _prefixes_there(program: Program) -> Iterator[str]:
    """The text before the first index of each name `...0...` whose shape `read_sizes` reads from every checkpoint."""
    for expr in [*program.spec.facts.values(), *(expr for expr, _ in program.spec.require)]:
        if isinstance(expr.tree, ast.IfExp | ast.BoolOp):
            continue
        for node in ast.walk(expr.tree):
            if isinstance(node, ast.IfExp | ast.BoolOp | ast.ListComp):
                break
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(alternatives(node.value)) > 1:
                break
        else:
            for function, text, _ in expr.asked:
                if function == "dim":
                    parts = re.split(r"(?<![0-9])0(?=\.|$)", text)
                    yield from ("#".join(parts[:n]) for n in range(1, len(parts)))

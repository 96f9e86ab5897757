"""Renders the standalone converter of a Program, as `{path: text}`. Writes no file.

Each section of a converter has a template under `templates/converter`. Templates receive names, literals and expressions
as finished Python text. ruff formats the result and removes unused imports. The same spec always gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compiler.language.name_pattern_overlap import common_name
from compiler.language.spec import in_parts
from compiler.ops.lossy import Lora
from compiler.program.program import Program
from compiler.render import command_line, named_sources
from compiler.render.config_fields import ConfigFields
from compiler.render.long_lines import LINE, WIDEST, aligned, packed, shortened
from compiler.render.pair import Restored, joined
from compiler.render.python_source import ExprPrinter, in_f_string, inside, literal, names_regex, opposite, quoted, raw
from compiler.render.rule_function import kernel_text
from compiler.render.state_dict import StateDict
from compiler.target import config_dialects
from compiler.templating import banner, environment, formatted

_ONE_COUNT = re.compile(r"len\(matches\(shapes, (.*)\)\)")
# Helper functions of a converter that are printed only where they are called.
HELPERS = ("matches", "same", "concat", "stack")


def render(
    program: Program,
    model_type: str,
    auto_map: Mapping[str, str] | None = None,
    code: Iterable[str] = (),
    neutral: Mapping[str, Sequence[Any]] | None = None,
    second: Restored | None = None,
) -> dict[str, str]:
    """The converter, or with `second` the one that goes on into another layout of the same class. For a target with code of
    its own: `auto_map` for config.json, and the names of the `code` files, which the converter copies from beside itself.
    `neutral`: fields of the source that nothing reads, and the values with which they change nothing; a source that states
    others is rejected.

    Raises Refusal for a rule that cannot be written as a loop, and for an argument named like an option of converters.
    """
    module = f"convert_{program.spec.name.value}" + (f"_to_{second.spec.name}" if second else "")
    context = _Context(program, module, model_type, auto_map or {}, code, neutral or {}).values()
    context |= joined(context, second) if second else {"second": None}
    text = environment().get_template("converter/module.py.jinja").render(**context)
    return {f"{module}.py": formatted(shortened(formatted(text, WIDEST)))}


class _Context:
    """The variables of the templates."""

    def __init__(
        self,
        program: Program,
        module: str,
        model_type: str,
        auto_map: Mapping[str, str],
        code: Iterable[str],
        neutral: Mapping[str, Sequence[Any]],
    ) -> None:
        self.program, self.spec, self.module, self.model_type = program, program.spec, module, model_type
        self.auto_map, self.code, self.neutral = auto_map, sorted(code), neutral
        self.printer = ExprPrinter("f")

    def values(self) -> dict[str, Any]:
        spec = self.spec
        state_dict = StateDict(self.program, self.printer)
        lines = state_dict.lines
        early, late = self.requirements()
        facts, sizing = [*self.facts()], self.sizing()
        fields = {field.name for field in spec.config}
        found = {
            "banner": banner(spec.name.value),
            "summary": inside(spec.summary),
            "module": self.module,
            **self.container(),
            **command_line.values(spec, self.neutral),
            **named_sources.values(spec),
            "mapping": aligned(
                [(r.source, r.target) for r in state_dict.rows if not r.condition and not state_dict.kept]
            ),
            "kept": packed((r.source for r in state_dict.rows if not r.condition and state_dict.kept), LINE - 4),
            "optional": aligned([(r.source, r.target, r.condition) for r in state_dict.rows if r.condition]),
            "ranges": state_dict.comment,
            "first": [condition for condition in early if "f." not in condition[0]],
            "sizing": _unpacked([fact for fact in facts if fact["name"] in sizing]),
            "early": [condition for condition in early if "f." in condition[0]],
            "late": late,
            "facts": _unpacked([fact for fact in facts if fact["name"] not in sizing]),
            **ConfigFields(self.program, self.model_type, self.printer).values(),
            "padding": {"pad_token_id", "vocab_size"} <= fields,
            "class_name": spec.target.class_name,
            # The model types of a config that the converter accepts; a spec that lists some accepts no others.
            "types": [] if self.code else sorted(map(quoted, {self.model_type, *spec.model_types})),
            "closed": bool(spec.model_types),
            "token_ids": tuple(name for name in config_dialects.TOKEN_IDS if name in fields),
            "state_dict": lines,
            "functions": state_dict.made,
            "kernels": [kernel_text(name) for name in sorted(state_dict.functions.kernels)],
            "written_twice": self.written_twice(),
            "auto_map": dict(self.auto_map),
            "code": self.code,
            "processor": [*self.processor()],
        }
        helpers = self.printer.helpers | ({"matches", "same"} if self.program.merged else set())
        asked = [*found["sizing"], *found["facts"]]
        code = [*lines, *(fact["value"] for fact in asked), *(condition for condition, _ in (*early, *late))]
        if not self.program.merged and sum(text.count("matches(") for text in code) == 1:
            for fact in asked:
                fact["value"], replaced = _ONE_COUNT.subn(
                    r"sum(bool(re.fullmatch(\1, name)) for name in shapes)", fact["value"]
                )
                helpers -= {"matches"} if replaced else set()
        return found | {"helpers": {name: name in helpers for name in HELPERS}, "compares": "equal" in helpers}

    def container(self) -> dict[str, Any]:
        """How the converter reads the container that the spec names, and how its help describes it."""
        weights, config = self.spec.weights, self.spec.source_config
        ending = re.search(r"\.[A-Za-z0-9_]+\Z", weights)  # it is printed in a docstring: nothing but a plain suffix
        suffix = ending[0] if ending else ""
        suffixes = (suffix,) if suffix else (".pth", ".pt", ".safetensors")
        # A model and its adapter are two files.
        several = any(isinstance(op, Lora) for rule in self.program.rules for op, _ in rule.steps)
        kind = "torch"
        if self.spec.sources:
            kind = "sources"
        elif in_parts(weights):
            kind = "parts" if self.program.merged else "files"
        elif suffix in (".gguf", ".safetensors"):
            kind = suffix[1:]
        elif several:
            kind = "files"
        several = several and kind == "files"
        stored = kind in ("gguf", "sources") or (kind != "safetensors" and not config)
        state = "Parts" if kind == "parts" else "dict[str, Tensor]"
        text = {
            "sources": "its sources",
            "parts": f"the folder of {weights}",
            "files": f"its {suffix} files" if several else f"the folder of {weights}, or a file",
            "safetensors": "a .safetensors file, or the folder of one or of an index",
        }.get(kind, f"a {suffix} file")
        place = "args.source[0].parent" if several else "(args.source if args.source.is_dir() else args.source.parent)"
        if kind == "sources":
            first = f"paths[{quoted(self.spec.sources[0].name.value)}]"
            place = f"({first} if {first}.is_dir() else {first}.parent)"
        beside = f"{place} / {quoted(config)}"
        if "*" in config:
            beside = f"min({place}.glob({quoted(config)}), default=args.out / 'none')"
        example = (
            "folder/" if kind in ("parts", "safetensors") or (kind == "files" and not several) else f"model{suffix}"
        )
        return {
            "container": kind,
            "nested": self.spec.nested or any(source.nested for source in self.spec.sources),
            "several": several,
            "load_name": "load_state_dict" if kind == "torch" else "load_torch_file",
            "weights": quoted(weights),
            "weights_text": in_f_string(weights) or "checkpoints",
            "suffixes": suffixes,
            "torch": suffixes != (".safetensors",),
            "stored": stored,
            "load_code": _load_code(suffixes, stored),
            "loaded_type": f"tuple[{state}, dict[str, Any]]" if stored else state,
            "merged": [*self.merged()],
            "alone": [raw(names_regex(m.pattern)) for m in self.program.merged if m.by],
            "unequal": any(m.lengths for m in self.program.merged),
            "shaped": any(e.asked for m in self.program.merged for e in m.expressions),
            "digits": len(re.findall(r"\d+", weights.partition("*")[0])),
            "source_example": self.spec.source_words
            if self.spec.sources
            else f"{example} lora{suffix}"
            if several
            else example,
            "source_help": quoted(f"the checkpoint: {text}".replace("%", "%%")),
            "shapes": f"{{name: tensor.shape for name, tensor in {'meta' if kind == 'parts' else 'source'}.items()}}",
            "source_type": "MutableMapping[str, Any]" if kind == "parts" else "dict[str, Tensor]",
            "sources": "{', '.join(map(str, args.source))}" if several else "{args.source}",
            "place": place,
            "beside": beside if config else "",
        }

    def merged(self) -> Iterator[tuple[str, str, str]]:
        """Pattern, axis and blocks of each tensor whose parts are joined, as Python."""
        printer = ExprPrinter("")
        for rule in self.program.merged:
            if rule.axis is not None:
                blocks = f"[{', '.join(map(printer, rule.lengths))}]" if rule.lengths else str(rule.blocks)
                yield raw(names_regex(rule.pattern)), printer(rule.axis), blocks

    def facts(self) -> Iterator[dict[str, str]]:
        """Facts and computed arguments, each after those that it or its default depends on."""
        facts, done = self.spec.facts, list[str]()
        own = {n: self.spec.fields[n] for n, e in facts.items() if n in e.names and n in self.spec.fields}
        defaults = {n: f.expr for n, f in own.items() if f.expr is not None}
        computed = {n: a.derive for n, a in self.spec.arguments.items() if a.derive}
        values = {**facts, **computed}

        def visit(name: str) -> None:
            read = values[name].names | (defaults[name].names if name in defaults else frozenset())
            for other in sorted((read & values.keys()) - {name}):
                if other not in done:
                    visit(other)
            if name not in done:
                done.append(name)

        for name in values:
            visit(name)
        for name in done:
            default, needed = "", ""
            if name in own:
                default = self.printer(defaults[name]) if name in defaults else literal(own[name].constant)
            if name in computed and "None" in computed[name].text:
                needed = quoted(f"--{name} is needed, as an option or in a config")
            value = {"name": name, "target": f"f.{name}", "value": self.printer(values[name])}
            yield value | {"default": default, "computed": name if name in computed else "", "needed": needed}

    def processor(self) -> Iterator[tuple[str, str]]:
        """The fields of preprocessor_config.json as code."""
        section = self.spec.processor
        for name, value in section.classes.items() if section else ():
            yield quoted(name), quoted(value)
        for field in section.fields if section else ():
            yield quoted(field.name), self.printer(field.expr) if field.expr else literal(field.constant)

    def sizing(self) -> set[str]:
        """The facts by which released models are recognised, and those that they read."""
        facts = self.spec.facts
        wanted = {name for model in self.spec.models for name in model.when} & facts.keys()
        while more := {n for name in wanted for n in facts[name].names & facts.keys()} - wanted:
            wanted |= more
        return wanted

    def requirements(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """The requirements: pairs of a condition and a reason. Those of the first list need neither facts nor shapes. They
        are checked first, because their reason explains more than a missing tensor does."""
        early: list[tuple[str, str]] = []
        late: list[tuple[str, str]] = []
        late_names = {*self.spec.facts, *(n for n, a in self.spec.arguments.items() if a.derive)}
        for expr, reason in self.spec.require:
            simple = not expr.names & late_names and all(function != "dim" for function, _, _ in expr.asked)
            (early if simple else late).append((self.printer(expr), quoted(reason)))
        return early, late

    def written_twice(self) -> bool:
        """Whether two rules can write the same name for some arguments."""
        rules = [*self.program.rules, *self.program.created]
        for n, rule in enumerate(rules):
            for other in rules[:n]:
                first, second = (guard.text if guard else "" for guard in (rule.when, other.when))
                apart = opposite(first, second) or opposite(second, first)
                overlap = any(common_name(a, b) for a in rule.targets for b in other.targets)
                if (first or second) and not apart and overlap:
                    return True
        return False


def _unpacked(facts: list[dict[str, str]]) -> list[dict[str, str]]:
    """The facts, where consecutive ones that are axes 0, 1, ... of one tensor become one assignment."""
    found: list[dict[str, str]] = []
    axes = 0
    for fact in facts:
        shape, _, axis = fact["value"].partition("][")
        before = found[-1] if found else {"value": ""}
        plain = not fact["default"] and not fact["computed"]
        if axis == f"{axes}]" and axes and plain and before["value"].partition("][")[0] == shape:
            before["target"] += f", {fact['target']}"
            before["value"] = f"{shape}][:{axes + 1}]"
            axes += 1
            continue
        axes = 1 if axis == "0]" and plain else 0
        found.append(fact)
    return found


def _load_code(suffixes: tuple[str, ...], stored: bool) -> str:
    """The code that loads one `file` of several."""
    if ".safetensors" not in suffixes:
        return "load_torch_file(file)"
    plain = "(load_file(file), dict[str, Any]())" if stored else "load_file(file)"
    return plain if len(suffixes) == 1 else f'{plain} if file.suffix == ".safetensors" else load_torch_file(file)'

"""The second half of a converter for a pair of specs: from the tensors and the config of the class where they meet, back to
the layout of the second spec.

Takes the second Program. Returns the template variables of `converter/restore.py.jinja`: the arguments and facts as
expressions over the fields of config.json, the inverse of the rules, and the config that the second trainer keeps.
`mapspec run A SOURCE OUT --to B` does the same with what it knows when it runs; here all is read from the two specs. Raises
Refusal: `no-converter` at the rule, fact or spec for what cannot be written so.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from compiler.diagnostics import Span, refuse
from compiler.language.expression import ASKING, Expr
from compiler.language.name_pattern_parser import parse_pattern
from compiler.language.spec import Argument
from compiler.program.program import Program
from compiler.render.long_lines import aligned
from compiler.render.python_source import ExprPrinter, inside, literal, quoted
from compiler.render.rule_function import kernel_text
from compiler.render.state_dict import StateDict

HOLDER = "g"
_RUN = "mapspec run --to converts it"


class Restored:
    """The template variables. `known`: the arguments of the first spec, whose options serve the second one too; `weights`:
    the path of the file of weights; `free`: fields of config.json that may differ from those that the second spec writes;
    `sizes`: constants among the arguments in a torch file."""

    def __init__(
        self,
        program: Program,
        known: Mapping[str, Argument],
        weights: str,
        free: Collection[str],
        sizes: Mapping[str, int],
    ) -> None:
        self.program, self.spec, self.known, self.weights = program, program.spec, known, weights
        self.free, self.sizes = free, sizes
        self.printer = ExprPrinter(HOLDER)
        self.check()
        self.solved = dict(self.solutions())

    def check(self) -> None:
        """Refuse what no standalone converter writes."""
        spec = self.spec
        gguf, own = self.weights.endswith(".gguf"), spec.target.model is None
        if gguf or own or spec.layout.dictionaries:
            what = "a GGUF file" if gguf else "a model with code of its own" if own else "nested dictionaries"
            refuse(spec.name.span, f"a converter cannot write {what}", "no-converter", _RUN)
        for rule in self.program.created:
            message = f"{rule.name or rule.targets[0]} is made by the conversion, and a converter does not drop it"
            refuse(rule.span, message, "no-converter", _RUN)
        for tie in self.program.ties:
            if not (tie.alias.is_name and tie.owner.is_name):
                message = f"a converter writes no tied tensors of several names: {tie.alias}"
                refuse(tie.alias.span, message, "no-converter", _RUN)
        for rule in self.program.rules:
            if rule.irreversible and rule.when is None:
                refuse(
                    rule.span, f"the rule {rule.name or rule.kind} has no inverse: {rule.irreversible}", "no-converter"
                )

    def values(self) -> dict[str, Any]:
        reversible = [rule for rule in self.program.rules if not rule.irreversible]
        rules = tuple(rule.reversed() for rule in reversible)
        backwards = replace(self.program, rules=rules, ties=(), ignored=(), created=(), merged=())
        state_dict = StateDict(backwards, self.printer)
        lines = [line.replace("STATE_DICT_MAPPING", "RESTORED_MAPPING").replace("OPTIONAL_MAPPING", "OPTIONAL_RESTORED")
                 .replace("KEPT", "KEPT_AGAIN").replace("when(f)", f"when({HOLDER})") for line in state_dict.lines]  # fmt: skip
        layout, facts, config = self.spec.layout, [*self.facts()], [*self.own_fields()]
        return {
            "name": self.spec.name.value,
            "weights": quoted(self.weights),
            "safetensors": self.weights.endswith(".safetensors"),
            "state_keys": [*map(quoted, layout.state_dict)],
            "objects": [(quoted(f.name), self.printer(f.expr)) for f in layout.objects if f.expr],
            "arguments_key": quoted(layout.arguments) if layout.arguments and layout.state_dict else "",
            "namespace": layout.namespace,
            "stored": ", ".join(f"{quoted(name)}: {value}" for name, value in self.sizes.items()),
            "texts": [(quoted(name), quoted(text)) for name, text in layout.texts],
            "rows": aligned([(r.source, r.target) for r in state_dict.rows if not r.condition]),
            "kept": [r.source for r in state_dict.rows if not r.condition] if state_dict.kept else [],
            "guarded": aligned([(r.source, r.target, r.condition) for r in state_dict.rows if r.condition]),
            "lines": lines,
            "ties": [
                (self.printer(tie.when) if tie.when else "True", quoted(str(tie.alias)), quoted(str(tie.owner)))
                for tie in self.program.ties
            ],
            "functions": state_dict.made,
            "kernels": sorted(state_dict.functions.kernels),
            "arguments": [*self.arguments()],
            "options": [*self.options()],
            "facts": facts,
            "sized": any("shapes" in code for _, code in facts),
            "required": [(self.printer(expr), quoted(reason)) for expr, reason in self.spec.require if not expr.asked],
            "excluded": [
                (self.printer(rule.when), quoted(rule.irreversible))
                for rule in self.program.rules
                if rule.irreversible and rule.when is not None
            ],
            "fields": [*self.config_fields()],
            "config": [(name, code) for name, code, _ in config],
            "measured": any("shapes" in code for _, code, _ in config),
            "optional": [name for name, _, optional in config if optional],
            "always": [name for name, _, optional in config if not optional],
            "needed": [n for n in self.optional() if self.spec.arguments[n].required],
            "holder": quoted(layout.holder) if layout.holder else "",
            "config_file": quoted(self.spec.source_config) if self.spec.source_config else "",
            "yaml": self.spec.source_config.endswith((".yaml", ".yml")),
            "helpers": self.printer.helpers,
        }

    # -----------------------------------------------------------------------------------------------------------------
    # Arguments and facts

    def solutions(self) -> Iterator[tuple[str, str]]:
        """Argument or fact -> its value as code, where a field of config.json decides it: the field is the name itself, or
        `name or other`, or a mapping that is there if the name is true and has others as its values."""
        for field in self.spec.config:
            code = f"config[{quoted(field.name)}]"
            if field.name in self.free and not field.carried:
                continue
            match field.expr.tree if field.expr else None:
                case ast.Name(id=name) | ast.BoolOp(op=ast.Or(), values=[ast.Name(id=name), *_]):
                    yield name, code
                case ast.IfExp(test=ast.Name(id=name), body=ast.Dict(keys=keys, values=parts), orelse=other):
                    entries = {k.value: p for k, p in zip(keys, parts, strict=True) if isinstance(k, ast.Constant)}
                    kind, test = entries.get("rope_type"), f"{code} is not None"
                    none = isinstance(other, ast.Constant) and other.value is None
                    if not none and isinstance(kind, ast.Constant):
                        test = f"({code} or {{}}).get('rope_type') == {kind.value!r}"
                    own = {
                        part.slice.value: key
                        for key, part in entries.items()
                        if isinstance(part, ast.Subscript)
                        and isinstance(part.value, ast.Name)
                        and part.value.id == name
                        and isinstance(part.slice, ast.Constant)
                    }
                    if own:
                        items = ", ".join(f"{quoted(str(a))}: {code}[{quoted(str(b))}]" for a, b in own.items())
                        yield name, f"{{{items}}} if {test} else None"
                    else:
                        yield name, test
                    for key, part in entries.items():
                        if isinstance(part, ast.Name):
                            yield part.id, f"{code}[{quoted(str(key))}] if {test} else None"

    def arguments(self) -> Iterator[tuple[str, str]]:
        """The arguments that need no fact: what config.json decides, or the default."""
        for name, argument in self.spec.arguments.items():
            value = self.solved.get(name) or (f"args.{name}" if name in self.known else literal(argument.default))
            if not argument.derive:
                yield name, f"args.to_{name}" if name in self.optional() else value

    def optional(self) -> list[str]:
        """The arguments that are options of their own: what neither config.json nor an option of the first spec gives."""
        return [name for name in self.spec.arguments if name not in {*self.known, *self.solved}]

    def options(self) -> Iterator[tuple[str, str]]:
        """The options: name, and what `add_argument` takes. They are kept apart from those of the first spec."""
        for name in self.optional():
            argument = self.spec.arguments[name]
            kind = {int: "int", float: "float", str: "str"}.get(type(argument.default), "json.loads")
            text = " ".join(argument.help.split()).replace("%", "%%")
            default = "" if argument.default is None or argument.required else f", default={literal(argument.default)}"
            help = f"of {self.spec.name}{': ' + text if text else ''}" + "; default: %(default)s" * (
                not argument.required
            )
            yield name, f"type={kind}{default}, help={quoted(help)}"

    def facts(self) -> Iterator[tuple[str, str]]:
        """Facts and computed arguments, each after those that it depends on."""
        computed = {n: a.derive for n, a in self.spec.arguments.items() if a.derive}
        values = {**self.spec.facts, **{n: e for n, e in computed.items() if e is not None}}
        done: list[str] = []

        def visit(name: str) -> None:
            if name in done:
                return
            if name not in self.solved or name in computed:
                for other in sorted((values[name].names & values.keys()) - {name}):
                    visit(other)
            done.append(name)

        for name in values:
            visit(name)
        for name in done:
            if name in computed:
                solved = self.solved.get(name)
                code = self.printer(values[name])
                code = f"{solved.removesuffix(' else None')} else {code}" if solved else code
                given = f"args.to_{name}" if name in self.optional() else f"args.{name}" if not solved else ""
                yield name, f"{code} if {given} is None else {given}" if given else code
            elif name in self.solved:
                yield name, self.solved[name]
            else:
                yield name, self.asked(values[name], values[name].span)

    def asked(self, expr: Expr, span: Span) -> str:
        """An expression over the second source as code over `shapes`, the shapes of the class's tensors."""
        tree = _Asked(self.program, span).visit(ast.parse(expr.text, mode="eval").body)
        return self.printer.code(tree)

    # -----------------------------------------------------------------------------------------------------------------
    # Configs

    def config_fields(self) -> Iterator[tuple[str, str]]:
        """The fields of config.json that the second spec would write, except those that decide an argument."""
        for field in self.spec.config:
            if field.name not in self.free and not field.carried:
                yield quoted(field.name), self.printer(field.expr) if field.expr else literal(field.constant)

    def own_fields(self) -> Iterator[tuple[str, str, bool]]:
        """The fields of the second trainer's config as `model_folder.source_folder.fields` has them: name, value, and
        whether a null is left out."""
        spec, layout = self.spec, self.spec.layout
        omitted = {name.value for name in layout.omit} | {field.name for field in layout.fields}
        found: dict[str, tuple[str, bool]] = {}
        if not layout.omit_all:
            for name, argument in spec.arguments.items():
                found[name] = f"{HOLDER}.{name}", not argument.required and argument.default is None
            for carried in dict.fromkeys(field.carried for field in spec.config):
                if carried is not None and carried in spec.facts:
                    found[carried] = f"{HOLDER}.{carried}", False
            found |= {n: (literal(f.values[0]), False) for n, f in spec.fixed.items() if None not in f.values}
        for name, (code, optional) in found.items():
            if name not in omitted:
                yield quoted(name), code, optional
        for field in layout.fields:
            yield quoted(field.name), self.printer(field.expr) if field.expr else literal(field.constant), True


class _Asked(ast.NodeTransformer):
    """Replaces names of the second source in `dim`, `count` and `exists` by those of the class, where a rule keeps the
    shape. Raises Refusal."""

    def __init__(self, program: Program, span: Span) -> None:
        self.program, self.span = program, span

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        function = node.func.id if isinstance(node.func, ast.Name) else ""
        text = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if function not in ASKING:
            return node
        names = list(self.named(str(text), plain=function != "exists")) if function != "equal" else []
        if function == "exists" and not names:
            return ast.Constant(False)
        if not names:
            message = f"{function}({text!r}) does not follow from the tensors of the class"
            refuse(self.span, message, "no-converter", _RUN)
        node.args[0] = ast.Constant(names[0])
        return node

    def named(self, text: str, plain: bool) -> Iterator[str]:
        """The names in the class of what is asked for, by the rules that read it."""
        asked = parse_pattern(text, Span(""))
        for rule in self.program.rules:
            for pattern in rule.sources:
                if plain and not rule.keeps_shape:
                    continue
                if pattern.text == text:
                    yield rule.targets[0].text
                elif asked.is_name and (captures := pattern.match(text)) is not None:
                    holes: Sequence[str] = [*rule.targets[0].holes]
                    yield rule.targets[0].fill({hole: captures.get(hole, "0") for hole in holes})


def joined(context: Mapping[str, Any], second: Restored) -> dict[str, Any]:
    """What changes in the variables of the first converter: the helper functions of both, each once, and `second`."""
    values = second.values()
    bodies = {function.name: function for function in context["functions"]}
    functions = []
    for function in values["functions"]:
        if bodies.get(function.name) == function:
            continue
        renamed = function
        if function.name in bodies:
            again = f"{function.name}_again"
            values["lines"] = [re.sub(rf"\b{function.name}\(", f"{again}(", line) for line in values["lines"]]
            renamed = replace(function, name=again)
        functions.append(renamed)
    kernels = [text for text in map(kernel_text, values["kernels"]) if text not in context["kernels"]]
    spec = second.spec
    return {
        "second": values,
        "summary": f"{context['summary']}, and on into the layout of {inside(spec.name.value)}: {inside(spec.summary)}",
        "functions": [*context["functions"], *functions],
        "kernels": [*context["kernels"], *kernels],
        "helpers": {name: used or name in values["helpers"] for name, used in context["helpers"].items()},
    }

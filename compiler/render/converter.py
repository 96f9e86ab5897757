"""Program to text: the standalone converter, as `{path: text}`. Nothing is written here.

This room alone knows Jinja. Templates lay out; every name, literal and expression reaches them as finished Python text
from `printing`. The result is formatted by ruff, so that the same spec gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from compiler.diagnostics import listed, refuse
from compiler.language.expression import Expr
from compiler.language.spec import Argument, ReleasedModel, in_parts
from compiler.program.environment import Environment, Given
from compiler.program.inverse import SourceShapes
from compiler.program.program import Program, Rule
from compiler.render import rule_function, rule_loop
from compiler.render.python_source import ExprPrinter, expansion, inside, literal, quoted, raw
from compiler.render.rule_function import Function
from compiler.target import config_dialects
from compiler.templating import banner, environment, formatted


def render(
    program: Program, model_type: str, auto_map: Mapping[str, str] | None = None, code: Iterable[str] = ()
) -> dict[str, str]:
    """The converter. Path B: `auto_map` for config.json, and the names of the `code` files, which the converter copies
    from its own folder."""
    name = program.spec.name.value
    module = f"convert_{name}"
    text = (
        environment()
        .get_template("converter.py.jinja")
        .render(**_Context(program, module, model_type, auto_map or {}, code).values())
    )
    return {f"{module}.py": formatted(text)}


class _Context:
    """What the template of a converter sees."""

    def __init__(
        self, program: Program, module: str, model_type: str, auto_map: Mapping[str, str], code: Iterable[str]
    ) -> None:
        self.program, self.spec, self.module, self.model_type = program, program.spec, module, model_type
        self.auto_map, self.code = auto_map, sorted(code)
        self.printer = ExprPrinter("f")

    def values(self) -> dict[str, Any]:
        spec = self.spec
        steps = {rule: rule_function.print_rule(rule, self.printer) for rule in self.program.rules if rule.steps}
        renamed = [rule for rule in self.program.rules if not rule.steps]
        listed = [rule for rule in renamed if rule_loop.tabular(rule)]
        early, late = self.requirements()
        defaults = {n: a.default for n, a in spec.arguments.items() if not a.required and not a.derive}
        # A fact that falls back on its own name reads it like an argument.
        own = [spec.fields[n] for n, e in spec.facts.items() if n in e.names and n in spec.fields]
        defaults |= {f.name: f.constant for f in own if f.expr is None}
        derived = {f.name: f.expr for f in own if f.expr is not None}
        computed = {n: a for n, a in spec.arguments.items() if a.derive}
        required = [a for a in spec.arguments.values() if a.required]
        known = ["*ARGUMENTS"] * bool(defaults) + ["*REQUIRED"] * bool(required)
        known += [quoted(n) for n in (*derived, *computed)]
        suffix = ".gguf" if spec.weights.endswith(".gguf") else ".pth"
        plain = not in_parts(spec.weights) and suffix != ".gguf"
        weights = ["*.safetensors", "pytorch_model*.bin"] if plain else [spec.weights]
        found = {
            "banner": banner(spec.name.value),
            "summary": inside(spec.summary),
            "summary_literal": quoted(spec.summary),
            "module": self.module,
            "yaml_config": (yaml_config := spec.source_config.endswith((".yaml", ".yml"))),
            "config_example": inside(spec.source_config) if yaml_config else "config.json",
            "source_example": "folder/"
            if "safetensors" in spec.weights or in_parts(spec.weights)
            else f"model{suffix}",
            "gguf": suffix == ".gguf",
            "nested": spec.nested,
            "weights": [f"sorted(path.glob({quoted(pattern)}))" for pattern in weights],
            "nothing": quoted(f"nothing in the folder is called {' or '.join(weights)}; name the files themselves"),
            "merged": [(raw(m.pattern.regex), ExprPrinter("")(m.axis), m.blocks) for m in self.program.merged],
            "arguments": [(quoted(name), literal(value)) for name, value in defaults.items()],
            "required": [(quoted(a.name), quoted(a.help)) for a in required],
            "known": known[0][1:] if len(known) == 1 and known[0].startswith("*") else f"({', '.join(known)},)",
            "guesses": [(quoted(a.name), quoted(a.help)) for a in spec.arguments.values() if a.guess],
            "fixed": [(quoted(f.name), literal(list(f.values)), quoted(f.reason)) for f in spec.fixed.values()],
            "models": [(quoted(m.name), self.sizes(m), literal(dict(m.sets))) for m in spec.models],
            "sized": [(n, self.printer(spec.facts[n])) for n in self.sizing()],
            "mapping": _aligned([(raw(r.sources[0].regex), self.expanded(r)) for r in listed if not r.when]),
            "guarded": [(self.printer(r.when), raw(r.sources[0].regex), self.expanded(r)) for r in listed if r.when],
            "ignored": [(raw(p.regex), quoted(reason)) for p, reason in self.program.ignored],
            "facts": [
                ("", *computed_argument(self.printer, computed[name]))
                if name in computed
                else (name, self.printer(spec.facts[name]), self.printer(derived[name]) if name in derived else "")
                for name in self.ordered_facts(derived, computed)
                if name not in self.sizing()
            ],
            "scaled": "rope_scaling" in spec.arguments,
            "indices": [(quoted(name), self.guard(name)) for name in spec.indices],
            "first": [condition for condition in early if "f." not in condition[0]],
            "early": [condition for condition in early if "f." in condition[0]],
            "late": late,
            "config": [(quoted(f.name), self.printer(f.expr) if f.expr else literal(f.constant)) for f in spec.config],
            "dialect": list(self.dialect()),
            "functions": [_function(f) for f in steps.values()],
            "blocks": [rule_loop.moved(rule, self.printer) for rule in renamed if rule not in listed]
            + [rule_loop.applied(rule, function, self.printer) for rule, function in steps.items()]
            + [rule_loop.created(rule, self.printer) for rule in self.program.created],
            "kernels": [
                rule_function.kernel_text(name) for name in sorted({k for f in steps.values() for k in f.kernels})
            ],
            "ties": [
                {
                    "alias": raw(t.alias.regex),
                    "owner": rule_loop.written(t.owner, t.alias),
                    "condition": self.printer(t.when) if t.when else "",
                }
                for t in self.program.ties
            ],
            "keep_all": self.program.keep_all,
            "auto_map": dict(self.auto_map),
            "code": self.code,
            "model_class": quoted(spec.target.class_name),
            "model_type": quoted(self.model_type),
            "token_ids": repr(config_dialects.TOKEN_IDS),
        }
        return found | {"helpers": self.printer.helpers}

    def expanded(self, rule: Rule) -> str:
        return raw(expansion(rule.targets[0]))

    def guard(self, index: str) -> str:
        """The condition on a number `n` of an index."""
        return ExprPrinter("f", self.printer.helpers, index)(self.spec.indices[index])

    def sizing(self) -> list[str]:
        """The facts by which released models are recognised, each after those that it reads."""
        wanted = {name for model in self.spec.models for name in model.when}
        while more := {n for name in wanted & self.spec.facts.keys() for n in self.spec.facts[name].names} - wanted:
            wanted |= more
        return [name for name in self.ordered_facts({}, {}) if name in wanted]

    def sizes(self, model: ReleasedModel) -> str:
        """The condition that a released model is recognised by."""
        defaults = {n: a.default for n, a in self.spec.arguments.items()}
        conditions = []
        for name, value in model.when.items():
            default = literal(defaults.get(name))
            held = f"f.{name}" if name in self.spec.facts else f"getattr(f, {quoted(name)}, {default})"
            word = "is" if value is None or isinstance(value, bool) else "=="
            conditions.append(f"{held} {word} {literal(value)}")
        return " and ".join(conditions)

    def ordered_facts(self, derived: Mapping[str, Expr], computed: Mapping[str, Argument]) -> list[str]:
        """Facts, and `computed` arguments, in an order in which each stands after those that it, or its default in
        `derived`, reads."""
        facts = {**self.spec.facts, **{n: a.derive for n, a in computed.items() if a.derive}}
        done: list[str] = []

        def visit(name: str) -> None:
            read = facts[name].names | (derived[name].names if name in derived else frozenset())
            for other in sorted((read & facts.keys()) - {name}):
                if other not in done:
                    visit(other)
            if name not in done:
                done.append(name)

        for name in facts:
            visit(name)
        return done

    def requirements(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Conditions of refusal: those that need no fact and no shape come before the facts, which they explain."""
        early: list[tuple[str, str]] = []
        late: list[tuple[str, str]] = []
        for expr, reason in self.spec.require:
            late_names = {*self.spec.facts, *(n for n, a in self.spec.arguments.items() if a.derive)}
            simple = not expr.names & late_names and all(function != "dim" for function, _, _ in expr.asked)
            (early if simple else late).append((self.printer.refusal(expr), quoted(reason)))
        return early, late

    def dialect(self) -> Iterator[tuple[str, str]]:
        """The fields that `dialects.config_json` adds to the spec's, as code."""
        given = (
            {n: Given(v, "the example") for n, (v, _) in self.spec.examples[0].items()} if self.spec.examples else {}
        )
        env = Environment(self.program, SourceShapes(self.program, {}), given, trusted=True)
        fields = {f.name: env.evaluate(f.expr) if f.expr else f.constant for f in self.spec.config}
        written = config_dialects.config_json(fields, model_class="", model_type="", dtype="float32")
        apart = fields.keys() | {"architectures", "model_type", "dtype", "torch_dtype"}
        for name in [n for n in written if n not in apart]:  # a set has no order from run to run
            match name:
                case "rope_parameters":
                    scaled = '**(config["rope_scaling"] or {}), ' if "rope_scaling" in fields else ""
                    share = config_dialects.SHARE[0]  # of each head that is rotated
                    shared = f'"{share}": config["{share}"], ' if share in fields else ""
                    parameters = f'{{"rope_type": "default", {scaled}{shared}"rope_theta": config["rope_theta"]}}'
                    if (local := config_dialects.SLIDING_THETA) in fields:
                        sliding = f'{{"rope_type": "default", {shared}"rope_theta": config["{local}"]}}'
                        parameters = (
                            f'{{"{config_dialects.FULL}": {parameters}, "{config_dialects.SLIDING}": {sliding}}}'
                        )
                    yield quoted(name), parameters
                case "num_local_experts" | "num_experts":
                    yield quoted(name), f"config[{quoted(next(n for n in config_dialects.EXPERTS if n != name))}]"
                case "rope_scaling":
                    yield quoted(name), "None"
                case _:
                    others = listed(
                        n
                        for pair in (config_dialects.THETA, config_dialects.SHARE)
                        if name in pair
                        for n in pair
                        if n in fields
                    )
                    message = f"the config gives {others} and not {name}, which some versions read instead"
                    refuse(self.spec.name.span, message, "missing-field", f"give {name} as well")


def computed_argument(printer: ExprPrinter, argument: Argument) -> tuple[str, str]:
    """The value of an argument that follows from facts, and the lines that set it where nothing else gave it."""
    assert argument.derive is not None
    missing = quoted(f"not given: {argument.name} ({argument.help or 'the checkpoint does not reveal it'})")
    lines = [
        f"    if not hasattr(f, {quoted(argument.name)}):",
        f"        f.{argument.name} = {printer(argument.derive)}",
    ]
    if "None" in argument.derive.text:
        lines += [f"        if f.{argument.name} is None:", f"            raise SystemExit({missing})"]
    return "", "\n".join(lines)


def _function(function: Function) -> dict[str, Any]:
    parameters = [f"{name}: {kind}" for name, kind in function.parameters] + [
        f"{name}: {'float' if name in function.reals else 'int'}" for name, _ in function.sizes
    ]
    return {
        "name": function.name,
        "signature": ", ".join(parameters),
        "returns": function.returns,
        "comments": function.comments,
        "body": function.body,
        "results": function.results,
    }


def _aligned(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The targets of a table in one column."""
    width = max((len(a) for a, _ in pairs), default=0)
    return [(a, " " * (width - len(a)) + b) for a, b in pairs]

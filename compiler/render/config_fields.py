"""The fields of config.json as code: the spec's, and those that both generations of Transformers want beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compiler.diagnostics import listed, refuse
from compiler.language.expression import Expr
from compiler.program.environment import Environment, Given
from compiler.program.inverse import SourceShapes
from compiler.program.program import Program
from compiler.render.long_lines import LINE, loop_over, packed
from compiler.render.python_source import ExprPrinter, literal, quoted
from compiler.target import config_dialects
from compiler.target.config_meaning import ACTIVATIONS
from compiler.target.config_values import is_fraction, is_positive

MOST_PACKED = 80  # characters of a value that is written in a line with others


class ConfigFields:
    """The fields that the converter of a program writes. Raises Refusal for a field that has no value for one generation."""

    def __init__(self, program: Program, model_type: str, printer: ExprPrinter) -> None:
        self.program, self.spec, self.model_type, self.printer = program, program.spec, model_type, printer

    def values(self) -> dict[str, Any]:
        """The template variables: fields with short values in lines, the others one by one, and what values are checked."""
        plain = {"architectures": literal([self.spec.target.class_name]), "model_type": quoted(self.model_type)}
        computed: dict[str, str] = {}
        for field in self.spec.config:
            if field.expr is None or field.carried:
                plain[field.name] = self.printer(field.expr) if field.expr else literal(field.constant)
            else:
                computed[field.name] = self.printer(field.expr)
        dialect = dict(self.dialect())
        # What has no quotes needs no formatting, and what does not read other fields may be in any order.
        every = computed | dialect
        plain |= {
            n: v for n, v in every.items() if len(v) < MOST_PACKED and not {*v} & {*"'\"\n"} and "config" not in v
        }
        given = [field for field in self.spec.config if field.expr and self.depends_on_arguments(field.expr)]
        return {
            "config": packed((f"{quoted(name)}: {value}" for name, value in plain.items()), LINE - 8),
            "computed": [(quoted(n), value) for n, value in every.items() if n not in plain],
            "dialects": bool(dialect),
            "kinds": {config_dialects.SLIDING_THETA, "rope_scaling"} <= {field.name for field in self.spec.config},
            "positive": loop_over(field.name for field in given if is_positive(field.name)),
            "activations": [field.name for field in given if field.name in ACTIVATIONS],
            "fractions": [field.name for field in given if is_fraction(field.name)],
        }

    def dialect(self) -> Iterator[tuple[str, str]]:
        """The fields that `config_dialects.config_json` adds to the spec's, as code."""
        given = (
            {n: Given(v, "the example") for n, (v, _) in self.spec.examples[0].items()} if self.spec.examples else {}
        )
        env = Environment(self.program, SourceShapes(self.program, {}), given, trusted=True)
        fields = {f.name: env.evaluate(f.expr) if f.expr else f.constant for f in self.spec.config}
        written = config_dialects.config_json(fields, model_class="", model_type="", dtype="float32")
        for name, value in fields.items():
            submodel = isinstance(value, Mapping) and value.get("model_type")
            if submodel and (more := written[name].keys() - value.keys()):
                message = f"{name} does not give {listed(sorted(more))}, which some versions read"
                refuse(self.spec.name.span, message, "missing-field", "a converter does not derive fields of submodels")
        apart = fields.keys() | {"architectures", "model_type", "dtype", "torch_dtype"}
        for name in [n for n in written if n not in apart]:  # in a fixed order
            match name:
                case "rope_parameters":
                    scaling = self.field("rope_scaling")
                    scaled = f"**({scaling} or {{}}), " if "rope_scaling" in fields else ""
                    scaled = "" if scaling == "None" else scaled
                    share = config_dialects.SHARE[0]  # the share of each head that is rotated
                    shared = f'"{share}": {self.field(share)}, ' if share in fields else ""
                    parameters = f'{{"rope_type": "default", {scaled}{shared}"rope_theta": {self.field("rope_theta")}}}'
                    if (local := config_dialects.SLIDING_THETA) in fields:
                        sliding = f'{{"rope_type": "default", {shared}"rope_theta": {self.field(local)}}}'
                        parameters = (
                            f'{{"{config_dialects.FULL}": {parameters}, "{config_dialects.SLIDING}": {sliding}}}'
                        )
                    yield name, parameters
                case "num_local_experts" | "num_experts":
                    yield name, self.field(next(n for n in config_dialects.EXPERTS if n != name))
                case "rope_scaling":
                    yield name, "None"
                case _:
                    others = listed(n for pair in config_dialects.SYNONYMS if name in pair for n in pair if n in fields)
                    message = f"the config gives {others} and not {name}, which some versions read instead"
                    refuse(self.spec.name.span, message, "missing-field", f"give {name} as well")

    def depends_on_arguments(self, expr: Expr) -> bool:
        """Whether the value of an expression depends on an argument, directly or through facts that ask for no shape."""
        facts = {name: fact for name, fact in self.spec.facts.items() if not fact.asked}
        names = set(expr.names)
        while more := {other for name in names & facts.keys() for other in facts[name].names} - names:
            names |= more
        return bool(names & self.spec.arguments.keys())

    def field(self, name: str) -> str:
        """The value of a config field as code: repeated where it is a name or a constant, else read from `config`."""
        found = next((field for field in self.spec.config if field.name == name), None)
        if found is None:
            return ""
        if found.expr is None:
            return literal(found.constant) if not isinstance(found.constant, dict | list) else f"config[{quoted(name)}]"
        return self.printer(found.expr) if found.carried else f"config[{quoted(name)}]"

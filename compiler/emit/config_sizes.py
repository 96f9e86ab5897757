"""Sizes of a spec as code over a model's config: `n_heads` as `config.num_attention_heads`.

A name of the spec is the field of config.json that has its value unchanged; a fact without such a field is its
expression; what is left is a parameter of the emitted function.
"""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from typing import Any

from compiler.language.expression import Expr
from compiler.language.spec import Spec
from compiler.render.python_source import ExprPrinter, inside, literal

HOLDER = "config"  # the variable with the fields of config.json


class ConfigSizes(ExprPrinter):
    """Prints expressions over the target's config. `parameters`: the names that the config does not have, in the order of
    their use, each with its default or None and with what it is."""

    def __init__(self, spec: Spec, variable: str = HOLDER) -> None:
        super().__init__("")
        self.spec, self.config = spec, variable
        self.fields: dict[str, str] = {}
        for field in spec.config:
            if field.carried:
                self.fields.setdefault(field.carried, field.name)
        self.parameters: dict[str, tuple[Any, str]] = {}

    def code(self, tree: ast.expr) -> str:
        return super().code(self.over_config(tree))

    def over_config(self, tree: ast.expr) -> ast.expr:
        """The tree, with names of the spec replaced by fields of the config."""
        changed = _Names(self).visit(copy.deepcopy(tree))
        assert isinstance(changed, ast.expr)
        return changed

    def parameter(self, name: str) -> None:
        argument = self.spec.arguments.get(name)
        if argument is not None:
            self.parameters[name] = (argument.default, " ".join(argument.help.split()))
        else:
            self.parameters[name] = (None, self.spec.facts[name].text)


class _Names(ast.NodeTransformer):
    def __init__(self, sizes: ConfigSizes) -> None:
        self.sizes = sizes

    def visit_Name(self, node: ast.Name) -> ast.AST:
        name, spec = node.id, self.sizes.spec
        if name in self.sizes.fields:
            return ast.Attribute(ast.Name(self.sizes.config, ast.Load()), self.sizes.fields[name], ast.Load())
        if name in spec.facts and not _asks(spec.facts[name], spec, name):
            return self.sizes.over_config(spec.facts[name].tree)
        if name in spec.facts or name in spec.arguments:
            self.sizes.parameter(name)
        return node


def _asks(expr: Expr, spec: Spec, *seen: str) -> bool:
    """Whether an expression reads the checkpoint, itself or through a fact that no field has."""
    carried = {field.carried for field in spec.config}
    below = [name for name in expr.names & spec.facts.keys() if name not in carried]
    return bool(expr.asked) or any(name in seen or _asks(spec.facts[name], spec, *seen, name) for name in below)


@dataclass(frozen=True)
class Parameter:
    """A size that the config lacks, as a parameter of an emitted function."""

    name: str
    default: str  # code; empty where it is required
    help: str


def parameters(sizes: ConfigSizes) -> list[Parameter]:
    """The parameters that the code printed so far needs, those without a default first."""
    found = [Parameter(n, literal(d) if d is not None else "", inside(h)) for n, (d, h) in sizes.parameters.items()]
    return sorted(found, key=lambda parameter: bool(parameter.default))

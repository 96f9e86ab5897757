"""Render a custom architecture: the configuration and model modules that are stored beside the weights.

Takes a `CustomModel`; returns `{file name: text}`. Rejects blocks that do not work together, names that are not
identifiers or that shadow a standard library module, and missing config fields. Only checked identifiers, checked
expressions and literals of a spec reach the rendered text.
"""

from __future__ import annotations

import ast
import graphlib
import keyword
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.diagnostics import Diagnostic, Refusal, Span, nearest
from compiler.render.remote_code.blocks import (
    Blocks,
    pipeline_plan,
    required_fields,
    split_norms,
    tensor_plan,
    with_defaults,
)
from compiler.templating import environment, formatted

SUFFIX = "ForCausalLM"
# What follows For in the names of the rendered model classes.
TASKS = ("CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
# Fields that every rendered configuration has. A spec may declare them with other defaults.
COMMON = {"use_cache": "True", "initializer_range": "0.02"}
COMMON_MOE = {"output_router_logits": "False"}


@dataclass(frozen=True)
class CustomModel:
    """A custom architecture. `fields` maps each config field, in order, to the Python source of its default. If the source
    reads other fields, the default is None and `__init__` computes the value."""

    module: str
    config_class: str
    model_class: str
    blocks: Mapping[str, Any]
    fields: Mapping[str, str]
    summary: str
    banner: str


@dataclass(frozen=True)
class Fault:
    """A problem at `path`, the keys that lead to its place in the spec."""

    path: tuple[str, ...]
    message: str
    kind: str
    hint: str = ""


def render_custom(model: CustomModel) -> dict[str, str]:
    """The texts of `configuration_<module>.py` and `model_<module>.py`.

    Raises Refusal with all faults. A caller that knows the places in the spec calls `faults` first.
    """
    if problems := list(faults(model)):
        raise Refusal(
            Diagnostic(Span(model.module), f"{'.'.join(f.path)}: {f.message}", f.kind, f.hint) for f in problems
        )
    values = _values(model)
    templates = {"configuration": "custom/configuration.py.jinja", "model": "custom/modeling.py.jinja"}
    return {
        f"{stem}_{model.module}.py": formatted(environment().get_template(template).render(**values))
        for stem, template in templates.items()
    }


def auto_map(model: CustomModel) -> dict[str, str]:
    """The `auto_map` of config.json: auto class of Transformers -> `module.Class` in the folder."""
    prefix = f"model_{model.module}.{model.model_class.removesuffix(SUFFIX)}"
    return {
        "AutoConfig": f"configuration_{model.module}.{model.config_class}",
        "AutoModel": f"{prefix}Model",
        **{f"AutoModelFor{task}": f"{prefix}For{task}" for task in TASKS},
    }


def faults(model: CustomModel) -> Iterator[Fault]:
    """All reasons why `model` cannot be rendered. Its blocks must fit the schema."""
    target = ("target",)
    if not model.module.isidentifier() or keyword.iskeyword(model.module):
        yield Fault(
            (*target, "remote_code"), f"{model.module!r} is not a module name", "bad-name", "use letters, digits and _"
        )
    for stem in (f"configuration_{model.module}", f"model_{model.module}", model.module):
        if stem in sys.stdlib_module_names:
            yield Fault(
                (*target, "remote_code"),
                f"{stem!r} is the name of a standard library module",
                "shadowed-module",
                "choose another name",
            )
    for key, name in (("config", model.config_class), ("model", model.model_class)):
        if not name.isidentifier() or keyword.iskeyword(name):
            yield Fault(
                (*target, "classes", key), f"{name!r} is not a class name", "bad-name", "use letters, digits and _"
            )
    if not model.model_class.endswith(SUFFIX) or model.model_class == SUFFIX:
        hint = f"rename it to {model.model_class.removesuffix('Model')}{SUFFIX}"
        yield Fault((*target, "classes", "model"), f"the model class name must end in {SUFFIX}", "bad-name", hint)
    if model.config_class == model.model_class:
        yield Fault((*target, "classes", "config"), "the model and config classes have the same name", "bad-name")
    blocks = with_defaults(model.blocks)
    yield from _block_conflicts(blocks)
    yield from _field_faults(model.fields, blocks)


def _block_conflicts(blocks: Blocks) -> Iterator[Fault]:
    at = ("target", "blocks")
    qk_norm = blocks.attention["qk_norm"]
    if qk_norm != "none" and blocks.norm["kind"] != "rms":
        yield Fault((*at, "attention", "qk_norm"), f"qk_norm: {qk_norm} needs norm: rms", "block-mismatch")
    if qk_norm == "rotated" and blocks.attention["rope"] == "none":
        hint = "set rope: half, or qk_norm: per_head"
        yield Fault((*at, "attention", "qk_norm"), "qk_norm: rotated needs rotary positions", "block-mismatch", hint)
    if blocks.norm["bias"] and (blocks.norm["kind"] == "rms" or not blocks.norm["weight"]):
        kind = "an rms norm" if blocks.norm["kind"] == "rms" else "a norm without a weight"
        yield Fault((*at, "norm", "bias"), f"{kind} has no bias", "block-mismatch", "remove `bias`")
    if blocks.attention["rope"] == "none" and blocks.embedding["positions"] == "none":
        hint = "set rope: half on attention, or positions: learned on embedding"
        yield Fault((*at, "attention"), "the model has no position information", "block-mismatch", hint)
    for key, name in blocks.names.items():
        if keyword.iskeyword(name) or name.startswith("__"):
            yield Fault((*at, "names", key), f"{name!r} cannot be a module name", "bad-name")
    for scope in _scopes(blocks):
        for key in scope:
            other = next(k for k in scope if blocks.names[k] == blocks.names[key])
            if other != key:
                yield Fault(
                    (*at, "names", key), f"{key} and {other} are both named {blocks.names[key]!r}", "name-collision"
                )


def _scopes(blocks: Blocks) -> list[list[str]]:
    """Groups of keys of `names` that belong to one module, so that their names must differ."""
    grouped = blocks.attention["kind"] == "grouped_query"
    projections = ["q", "k", "v", "o"] if grouped else ["qkv", "o"]
    norms = ["q_norm", "k_norm"] if blocks.attention["qk_norm"] != "none" else []
    positions = ["positions"] if blocks.embedding["positions"] == "learned" else []
    dropout = ["embedding_dropout"] if blocks.embedding["dropout"] else []
    norm = ["embedding_norm"] if blocks.embedding["norm"] else []
    smear = ["smear_gate", "smear_scale"] if blocks.embedding["smear"] else []
    factors = {"scale": "residual_scales", "embedding": "embedding_scales", "subtract": "subtracted_scale"}
    residual = [name for key, name in factors.items() if blocks.residual[key]]
    values = ["value_embeddings"] if blocks.attention["value_embedding"] != "none" else []
    gate = ["value_gate"] if blocks.attention["value_embedding"] == "gated" else []
    sparse = ["router", "experts", "shared_experts"] if blocks.moe else []
    return [
        ["embedding", *positions, *norm, *smear, *dropout, *values, *residual, "layers", "final_norm"],
        ["attention_norm", "attention", "mlp_norm", "mlp"],
        [*projections, *gate, *norms],
        ["gate", "up", "down"] if blocks.mlp["kind"] == "gated" else ["up", "down"],
        sparse,
    ]


def _field_faults(fields: Mapping[str, str], blocks: Blocks) -> Iterator[Fault]:
    at = ("config", "fields")
    for name, reader in required_fields(blocks).items():
        if name not in fields:
            yield Fault(
                at,
                f"missing field {name!r}: {reader} reads it",
                "missing-field",
                nearest(name, fields) or f"add {name} with its default",
            )
    for name, source in fields.items():
        if not name.isidentifier() or keyword.iskeyword(name) or name in ("self", "kwargs", "math"):
            yield Fault((*at, name), f"{name!r} cannot be a config field", "bad-name")
            continue
        for other in sorted(_names(source) - fields.keys()):
            hint = nearest(other, fields) or "add it to config.fields"
            yield Fault((*at, name), f"{other!r} is not a field", "unknown-field", hint)
    try:
        _order(fields)
    except graphlib.CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        yield Fault((*at, min(error.args[1])), f"the fields depend on each other in a cycle: {cycle}", "circular-field")


_FUNCTIONS = {"math", "min", "max", "int", "len", "range", "round_up"}


def _names(source: str) -> set[str]:
    """The names that the Python expression `source` reads, except the indices of its lists."""
    names = [node for node in ast.walk(ast.parse(source, mode="eval")) if isinstance(node, ast.Name)]
    indices = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return {node.id for node in names} - indices - _FUNCTIONS


def _is_constant(source: str) -> bool:
    """Whether `source` is an immutable literal, which a signature can have as a default."""
    try:
        return not isinstance(ast.literal_eval(source), (list, dict, set))
    except ValueError:
        return False


def _order(fields: Mapping[str, str]) -> list[str]:
    """The computed fields, each after the fields that it reads. Raises graphlib.CycleError."""
    computed = {name for name, source in fields.items() if not _is_constant(source)}
    graph = {name: sorted(_names(fields[name]) & computed) for name in fields if name in computed}
    return list(graphlib.TopologicalSorter(graph).static_order())


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Norm:
    kind: str
    prefix: str
    weight: bool
    bias: str

    def make(self, size: str) -> str:
        """The call that builds a norm over a last axis of length `size`."""
        if self.kind == "rms":
            return f"{self.prefix}RMSNorm({f'{size}, ' if self.weight else ''}config.rms_norm_eps)"
        options = f"bias={self.bias}" if self.weight else "elementwise_affine=False"
        return f"nn.LayerNorm({size}, eps=config.layer_norm_eps, {options})"


def _values(model: CustomModel) -> dict[str, Any]:
    """The variables of the templates."""
    blocks = with_defaults(model.blocks)
    prefix = model.model_class.removesuffix(SUFFIX)
    common = COMMON | (COMMON_MOE if blocks.moe else {})
    fields = dict(model.fields) | {name: source for name, source in common.items() if name not in model.fields}
    computed = [(name, _expand_round_up(fields[name])) for name in _order(fields)]
    return {
        "banner": _comment(model.banner),
        "summary": _sentence(model.summary),
        "module": model.module,
        "prefix": prefix,
        "config_class": model.config_class,
        "model_class": model.model_class,
        "names": blocks.names,
        "embedding": blocks.embedding,
        "norm": _Norm(blocks.norm["kind"], prefix, blocks.norm["weight"], _flag(blocks.norm["bias"])),
        "attention": {**blocks.attention, "bias": _flag(blocks.attention["bias"])},
        "mlp": {**blocks.mlp, "bias": _flag(blocks.mlp["bias"])},
        "moe": blocks.moe,
        "residual": blocks.residual,
        "head": blocks.head,
        "scales": any(blocks.residual.values()) or blocks.embedding["smear"],
        "outputs": _OUTPUTS[blocks.moe is not None],
        "fields": [_field(name, source) for name, source in fields.items()],
        "computed": computed,
        "config_math": any("math." in source for _, source in computed),
        "plans": {
            "dense": tensor_plan(blocks, sparse=False),
            "sparse": tensor_plan(blocks, sparse=True),
            "norms": [repr(name) for name in split_norms(blocks)],
            "pp": pipeline_plan(blocks),
        },
    }


_OUTPUTS = {
    False: {"base": "BaseModelOutputWithPast", "causal": "CausalLMOutputWithPast"},
    True: {"base": "MoeModelOutputWithPast", "causal": "MoeCausalLMOutputWithPast"},
}


def _flag(value: bool | str) -> str:
    return f"config.{value}" if isinstance(value, str) else repr(value)


def _field(name: str, source: str) -> dict[str, str]:
    """One `__init__` parameter of the configuration class: name, type and default."""
    if not _is_constant(source) or source == "None":
        return {"name": name, "type": "int | None" if name.endswith("_id") else "Any", "default": "None"}
    return {"name": name, "type": type(ast.literal_eval(source)).__name__, "default": source}


def _line(text: str) -> str:
    """The text on one line, with spaces for unprintable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _expand_round_up(source: str) -> str:
    """The expression with `round_up(value, multiple)` written as plain Python: -(-value // multiple) * multiple."""

    class Expansion(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            if not isinstance(node.func, ast.Name) or node.func.id != "round_up":
                return node
            value, multiple = node.args
            quotient = ast.BinOp(ast.UnaryOp(ast.USub(), value), ast.FloorDiv(), multiple)
            return ast.BinOp(ast.UnaryOp(ast.USub(), quotient), ast.Mult(), multiple)

    return ast.unparse(Expansion().visit(ast.parse(source, mode="eval")))


def _comment(text: str) -> str:
    line = _line(text)
    return line if line.startswith("#") else f"# {line}"


def _sentence(text: str) -> str:
    """The text as the first line of a docstring; quotes and backslashes are escaped."""
    line = re.sub(r'(["\\])', r"\\\1", _line(text))
    return line if line.endswith((".", "!", "?")) else f"{line}."

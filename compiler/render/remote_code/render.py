"""A custom architecture to text: the configuration and model modules that travel with the weights.

Takes a `CustomModel`; returns `{file name: text}`. Refuses blocks that do not fit each other, names that are no
identifiers or hide a module of Python, and fields that a block needs and nobody declares: nothing of a spec reaches the
text but checked identifiers, checked expressions and literals.
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
from compiler.render.remote_code.blocks import Blocks, filled, pipeline_plan, required_fields, tensor_plan
from compiler.templating import environment, formatted

SUFFIX = "ForCausalLM"
# Fields that every configuration has; a spec may declare them itself with another default.
COMMON = {"use_cache": "True", "initializer_range": "0.02"}
COMMON_MOE = {"output_router_logits": "False"}


@dataclass(frozen=True)
class CustomModel:
    """An architecture of its own. `fields` maps each config field to the Python source of its default, in order; source
    that names other fields means that the default is None and is computed from them."""

    module: str
    config_class: str
    model_class: str
    blocks: Mapping[str, Any]
    fields: Mapping[str, str]
    summary: str
    banner: str


@dataclass(frozen=True)
class Fault:
    """What is wrong at `path`, the keys that lead there in the spec."""

    path: tuple[str, ...]
    message: str
    kind: str
    hint: str = ""


def render_custom(model: CustomModel) -> dict[str, str]:
    """`configuration_<module>.py` and `model_<module>.py`.

    Raises Refusal with every fault; a caller that knows the places in the spec asks `faults` first.
    """
    if found := list(faults(model)):
        raise Refusal(Diagnostic(Span(model.module), f"{'.'.join(f.path)}: {f.message}", f.kind, f.hint) for f in found)
    values = _values(model)
    templates = {"configuration": "custom/configuration.py.jinja", "model": "custom/modeling.py.jinja"}
    return {
        f"{stem}_{model.module}.py": formatted(environment().get_template(template).render(**values))
        for stem, template in templates.items()
    }


def auto_map(model: CustomModel) -> dict[str, str]:
    """What config.json says of the code: where Transformers' auto classes find theirs."""
    return {
        "AutoConfig": f"configuration_{model.module}.{model.config_class}",
        "AutoModelForCausalLM": f"model_{model.module}.{model.model_class}",
    }


def faults(model: CustomModel) -> Iterator[Fault]:
    """Everything that keeps `model` from being rendered. Its blocks fit the schema."""
    target = ("target",)
    if not model.module.isidentifier() or keyword.iskeyword(model.module):
        yield Fault(
            (*target, "remote_code"), f"{model.module!r} is no module name", "bad-name", "use letters, digits and _"
        )
    for stem in (f"configuration_{model.module}", f"model_{model.module}", model.module):
        if stem in sys.stdlib_module_names:
            yield Fault(
                (*target, "remote_code"),
                f"{stem!r} is a module of Python's own",
                "shadowed-module",
                "choose another name",
            )
    for key, name in (("config", model.config_class), ("model", model.model_class)):
        if not name.isidentifier() or keyword.iskeyword(name):
            yield Fault(
                (*target, "classes", key), f"{name!r} is no class name", "bad-name", "use letters, digits and _"
            )
    if not model.model_class.endswith(SUFFIX) or model.model_class == SUFFIX:
        hint = f"call it {model.model_class.removesuffix('Model')}{SUFFIX}"
        yield Fault(
            (*target, "classes", "model"), f"the name of a causal language model ends in {SUFFIX}", "bad-name", hint
        )
    if model.config_class == model.model_class:
        yield Fault((*target, "classes", "config"), "both classes have the same name", "bad-name")
    blocks = filled(model.blocks)
    yield from _misfits(blocks)
    yield from _field_faults(model.fields, blocks)


def _misfits(blocks: Blocks) -> Iterator[Fault]:
    at = ("target", "blocks")
    if blocks.attention["qk_norm"] == "per_head" and blocks.norm["kind"] != "rms":
        yield Fault((*at, "attention", "qk_norm"), "the norm of queries and keys needs norm: rms", "block-mismatch")
    if blocks.attention["rope"] == "none" and blocks.embedding["positions"] == "none":
        hint = "give the attention rope: half, or the embedding positions: learned"
        yield Fault((*at, "attention"), "nothing tells the model where a token stands", "block-mismatch", hint)
    for key, name in blocks.names.items():
        if keyword.iskeyword(name) or name.startswith("__"):
            yield Fault((*at, "names", key), f"{name!r} cannot be a module's name", "bad-name")
    for scope in _scopes(blocks):
        for key in scope:
            other = next(k for k in scope if blocks.names[k] == blocks.names[key])
            if other != key:
                yield Fault(
                    (*at, "names", key), f"{key} and {other} are both called {blocks.names[key]!r}", "name-collision"
                )


def _scopes(blocks: Blocks) -> list[list[str]]:
    """The keys of `names` that stand in one module, and must therefore differ."""
    grouped = blocks.attention["kind"] == "grouped_query"
    projections = ["q", "k", "v", "o"] if grouped else ["qkv", "o"]
    norms = ["q_norm", "k_norm"] if blocks.attention["qk_norm"] == "per_head" else []
    positions = ["positions"] if blocks.embedding["positions"] == "learned" else []
    dropout = ["embedding_dropout"] if blocks.embedding["dropout"] else []
    sparse = ["router", "experts", "shared_experts"] if blocks.moe else []
    return [
        ["embedding", *positions, *dropout, "layers", "final_norm"],
        ["attention_norm", "attention", "mlp_norm", "mlp"],
        [*projections, *norms],
        ["gate", "up", "down"] if blocks.mlp["kind"] == "gated" else ["up", "down"],
        sparse,
    ]


def _field_faults(fields: Mapping[str, str], blocks: Blocks) -> Iterator[Fault]:
    at = ("config", "fields")
    for name, reader in required_fields(blocks).items():
        if name not in fields:
            yield Fault(
                at,
                f"there is no field {name!r}, which {reader} reads",
                "missing-field",
                nearest(name, fields) or f"add {name} with its default",
            )
    for name, source in fields.items():
        if not name.isidentifier() or keyword.iskeyword(name) or name in ("self", "kwargs", "math"):
            yield Fault((*at, name), f"{name!r} cannot be a config field", "bad-name")
            continue
        for other in sorted(_names(source) - fields.keys()):
            hint = nearest(other, fields) or "declare it among the fields"
            yield Fault((*at, name), f"{other!r} is no field", "unknown-field", hint)
    try:
        _order(fields)
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        yield Fault(
            (*at, min(error.args[1])), f"the fields depend on each other in a circle: {circle}", "circular-field"
        )


_FUNCTIONS = {"math", "min", "max", "int", "len", "round_up"}


def _names(source: str) -> set[str]:
    """The fields that an expression reads."""
    return {node.id for node in ast.walk(ast.parse(source, mode="eval")) if isinstance(node, ast.Name)} - _FUNCTIONS


def _is_constant(source: str) -> bool:
    """Whether the source is a default that a signature can hold: what cannot be changed in place."""
    try:
        return not isinstance(ast.literal_eval(source), (list, dict, set))
    except ValueError:
        return False


def _order(fields: Mapping[str, str]) -> list[str]:
    """The computed fields, each after those that it reads."""
    computed = {name for name, source in fields.items() if not _is_constant(source)}
    graph = {name: sorted(_names(fields[name]) & computed) for name in fields if name in computed}
    return list(graphlib.TopologicalSorter(graph).static_order())


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Norm:
    kind: str
    prefix: str
    bias: str

    def make(self, size: str) -> str:
        """The call that makes a norm over the last axis, of `size`."""
        if self.kind == "rms":
            return f"{self.prefix}RMSNorm({size}, config.rms_norm_eps)"
        return f"nn.LayerNorm({size}, eps=config.layer_norm_eps, bias={self.bias})"


def _values(model: CustomModel) -> dict[str, Any]:
    """What the templates see."""
    blocks = filled(model.blocks)
    prefix = model.model_class.removesuffix(SUFFIX)
    common = COMMON | (COMMON_MOE if blocks.moe else {})
    fields = dict(model.fields) | {name: source for name, source in common.items() if name not in model.fields}
    computed = [(name, _spelled_out(fields[name])) for name in _order(fields)]
    return {
        "banner": _comment(model.banner),
        "summary": _sentence(model.summary),
        "module": model.module,
        "prefix": prefix,
        "config_class": model.config_class,
        "model_class": model.model_class,
        "names": blocks.names,
        "embedding": blocks.embedding,
        "norm": _Norm(blocks.norm["kind"], prefix, _flag(blocks.norm["bias"])),
        "attention": {**blocks.attention, "bias": _flag(blocks.attention["bias"])},
        "mlp": {**blocks.mlp, "bias": _flag(blocks.mlp["bias"])},
        "moe": blocks.moe,
        "outputs": _OUTPUTS[blocks.moe is not None],
        "fields": [_field(name, source) for name, source in fields.items()],
        "computed": computed,
        "config_math": any("math." in source for _, source in computed),
        "plans": {"tp": tensor_plan(blocks), "pp": pipeline_plan(blocks)},
    }


_OUTPUTS = {
    False: {"base": "BaseModelOutputWithPast", "causal": "CausalLMOutputWithPast"},
    True: {"base": "MoeModelOutputWithPast", "causal": "MoeCausalLMOutputWithPast"},
}


def _flag(value: bool | str) -> str:
    return f"config.{value}" if isinstance(value, str) else repr(value)


def _field(name: str, source: str) -> dict[str, str]:
    """A parameter of the configuration: its name, its type and its default."""
    if not _is_constant(source) or source == "None":
        return {"name": name, "type": "int | None" if name.endswith("_id") else "Any", "default": "None"}
    return {"name": name, "type": type(ast.literal_eval(source)).__name__, "default": source}


def _line(text: str) -> str:
    """The text on one line, with a space for whatever cannot be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _spelled_out(source: str) -> str:
    """The expression without `round_up`, which Python lacks: -(-value // multiple) * multiple."""

    class Spelling(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            if not isinstance(node.func, ast.Name) or node.func.id != "round_up":
                return node
            value, multiple = node.args
            quotient = ast.BinOp(ast.UnaryOp(ast.USub(), value), ast.FloorDiv(), multiple)
            return ast.BinOp(ast.UnaryOp(ast.USub(), quotient), ast.Mult(), multiple)

    return ast.unparse(Spelling().visit(ast.parse(source, mode="eval")))


def _comment(text: str) -> str:
    line = _line(text)
    return line if line.startswith("#") else f"# {line}"


def _sentence(text: str) -> str:
    """The text as the first line of a docstring, whatever it holds."""
    line = re.sub(r'(["\\])', r"\\\1", _line(text))
    return line if line.endswith((".", "!", "?")) else f"{line}."

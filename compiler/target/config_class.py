"""What the installed Transformers says of its config classes, read from its source text.

Which model types exist, and the default of every field of a config class. Nothing is imported: parsing two files costs
milliseconds, importing the package costs seconds. Sources: `models/auto/*.py` and `models/*/configuration_*.py` of
transformers 4.57.6 (defaults are those of `__init__`) and 5.24.0 (defaults are class variables).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from compiler.target import class_registry, model_class
from compiler.target.config_dialects import SHARE, THETA

# The base class's own default, which a config class replaces by a `default_theta` of its own.
BASE_THETA = 10000.0
_REGISTRIES = ("auto_mappings.py", "configuration_auto.py")
_REGISTRY = "CONFIG_MAPPING_NAMES"


@cache
def known_model_types() -> Mapping[str, str]:
    """Every `model_type` of the installed Transformers with the name of its config class; recorded ones without it."""
    if recorded := class_registry.record():
        return dict(recorded["configs"])
    found: dict[str, str] = {}
    for file in _REGISTRIES:
        path = model_class.package_folder() / "models/auto" / file
        if path.is_file():
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if _fills_registry(node):
                    found |= _pairs(node)
    return found


@cache
def config_defaults(model_type: str) -> Mapping[str, Any]:
    """The fields of the config class of `model_type` with their defaults; empty where the type is unknown.

    A field whose default is no literal is left out. Where the class takes rotary parameters, `rope_theta` and
    `rope_scaling` are in it under these names in either generation.
    """
    if recorded := class_registry.record():
        return dict(recorded["defaults"].get(model_type, {}))
    name = known_model_types().get(model_type, "")
    folders = [model_class.package_folder() / "models" / model_type.replace("-", "_")]
    folders += sorted((model_class.package_folder() / "models").glob("*")) if not folders[0].is_dir() else []
    for folder in folders:
        for path in sorted(folder.glob("configuration_*.py")):
            text = path.read_text(encoding="utf-8")
            if f"class {name}(" in text:
                return _of_class(ast.parse(text), name)
    return {}


def _fills_registry(node: ast.AST) -> bool:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name == _REGISTRY
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="update")):
            return name == _REGISTRY
    return False


def _pairs(node: ast.AST) -> dict[str, str]:
    """Each pair of texts below a node, be it of a list of tuples or of a dict."""
    found: dict[str, str] = {}
    for inner in ast.walk(node):
        match inner:
            case ast.Tuple(elts=[ast.Constant(value=str(key)), ast.Constant(value=str(value))]):
                found[key] = value
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                found |= {
                    str(k.value): str(v.value)
                    for k, v in pairs
                    if isinstance(k, ast.Constant) and isinstance(v, ast.Constant) and isinstance(v.value, str)
                }
    return found


def _of_class(tree: ast.Module, name: str) -> dict[str, Any]:
    """The defaults of a class, and before them those of its bases in the same file."""
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if node is None:
        return {}
    found: dict[str, Any] = {}
    for base in node.bases:
        found |= _of_class(tree, base.id) if isinstance(base, ast.Name) else {}
    theta: Any = BASE_THETA
    rotary = "rope_parameters" in found
    for field, value in _assignments(node):
        rotary |= field == "rope_parameters"
        theta = _literal(value, BASE_THETA) if field == "default_theta" else theta
        literal = _literal(value, _NOTHING)
        if literal is not _NOTHING and field not in ("default_theta", "rope_parameters"):
            found[field] = literal
    if rotary:
        whole = isinstance(theta, float | int)
        found |= {THETA[0]: theta} if whole else {}
        found |= {"rope_scaling": None}
    for field, other in (THETA, SHARE):
        if other in found:
            found.setdefault(field, found[other])
    return found


_NOTHING = object()


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """The fields of a class with the expressions of their defaults."""
    for item in node.body:
        match item:
            case ast.AnnAssign(target=ast.Name(id=field), value=ast.expr() as value):
                yield field, value
            case ast.Assign(targets=[ast.Name(id="default_theta")], value=value):
                yield "default_theta", value
            case ast.FunctionDef(name="__init__", args=arguments):
                named = arguments.args[len(arguments.args) - len(arguments.defaults) :]
                yield from ((a.arg, value) for a, value in zip(named, arguments.defaults, strict=True))


def _literal(node: ast.expr, otherwise: Any) -> Any:
    """The value of a literal, or of the `default` that a call such as `interval(...)(default=0.02)` names."""
    if isinstance(node, ast.Call):
        named = next((k.value for k in node.keywords if k.arg == "default"), None)
        return _literal(named, otherwise) if named is not None else otherwise
    try:
        return ast.literal_eval(node)
    except ValueError:
        return otherwise

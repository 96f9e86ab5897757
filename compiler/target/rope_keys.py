"""The keys of each kind of RoPE scaling, read from the source text of the installed Transformers.

Source: the functions `_validate_*_parameters` of `modeling_rope_utils.py` in transformers 4.57.6 and 5.24.0, each with the
sets `required_keys` and `optional_keys`. Nothing is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache

from compiler.target import model_class

_VALIDATOR = re.compile(r"_validate_([a-z0-9]+)(?:_scaling)?(?:_rope)?_parameters")


@cache
def rope_keys() -> Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Kind -> the keys that it needs, and those that it may have. Raises Refusal: `missing-package`."""
    path = model_class.package_folder() / "modeling_rope_utils.py"
    if not path.is_file():
        return {}
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and (match := _VALIDATOR.fullmatch(node.name)):
            keys = _sets(node)
            if "required_keys" in keys:
                found[match[1]] = keys["required_keys"], keys.get("optional_keys", ())
    return found


def _sets(function: ast.FunctionDef) -> dict[str, tuple[str, ...]]:
    """The sets of texts that a function assigns to names."""
    found: dict[str, tuple[str, ...]] = {}
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Set(elts=elements)):
                found[name] = tuple(sorted(str(e.value) for e in elements if isinstance(e, ast.Constant)))
    return found

"""The fields that one class of a config's ancestry declares, whatever the generation of Transformers.

Sources: the config classes of transformers 4.57.6, whose `__init__` has the fields as arguments or sets them, and of 5.24.0,
which are dataclasses.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from typing import Any

_TAKEN = re.compile(r"""kwargs\.(?:pop|get|setdefault)\(\s*["'](\w+)["']""")


def declared(config_class: type) -> dict[str, Any]:
    """The fields that one class of a config's ancestry declares: dataclass fields in the newest versions, else arguments of
    `__init__`; in both cases also the names it reads from `kwargs`."""
    found: dict[str, Any] = {}
    if dataclasses.is_dataclass(config_class):
        found = {f.name: _default(f) for f in dataclasses.fields(config_class) if f.init}
    elif "__init__" in vars(config_class):
        arguments = inspect.signature(config_class).parameters.values()
        named = [a for a in arguments if a.kind is not a.VAR_KEYWORD]
        found = {a.name: None if a.default is a.empty else a.default for a in named}
    # The base classes read names from `kwargs` too, but none is a field of a model.
    return (dict.fromkeys(taken(config_class)) if ".models." in config_class.__module__ else {}) | found


def taken(config_class: type) -> list[str]:
    """The names that the source text of a class reads from `kwargs`."""
    return _TAKEN.findall(inspect.getsource(config_class))


def assigned(config_class: type) -> list[str]:
    """The fields that an `__init__` of Transformers 4 sets without an argument for them. A config.json replaces such a value
    where the base class is called afterwards, because that sets every name that is left in `kwargs`."""
    own = "__init__" in vars(config_class) and not dataclasses.is_dataclass(config_class)
    if not own or ".models." not in config_class.__module__:
        return []
    source = inspect.getsource(vars(config_class)["__init__"])
    (function,) = ast.parse(textwrap.dedent(source)).body
    found: list[str] = []
    for node in function.body if isinstance(function, ast.FunctionDef) else ():
        match node:
            case ast.Expr(
                value=ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="__init__"))
            ):
                return found
        targets = [one for inner in ast.walk(node) if isinstance(inner, ast.Assign) for one in inner.targets]
        found += [t.attr for t in targets if isinstance(t, ast.Attribute) and not t.attr.startswith("_")]
    return []


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default

"""The source's own model in Python: MODULE:CLASS or FILE:FUNCTION, built from its config, and its inputs.

This imports and runs the code that the user names, in the isolated process that `run_model` is.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

# Words in the parameter names of source models -> the input of Transformers that they mean.
WORDS = {
    "pixel_values": ("image", "img", "pixel", "picture"),
    "input_features": ("mel", "feature", "spectro", "audio"),
    "input_values": ("wav", "audio", "sound", "spectro"),
    "decoder_input_ids": ("decoder", "tgt", "target", "token", "text"),
    "input_ids": ("text", "token", "ids", "idx", "src"),
    "input_points": ("point", "coord"),
    "input_labels": ("label",),
    "attention_mask": ("mask",),
}


def build(entry: str, config: Mapping[str, Any]) -> Any:
    """The module that `entry` names.

    A class gets the fields of `config` that it takes, or a config object of them. A function is called with one dict,
    `config`, and returns a torch module whose state_dict has the names and shapes of the checkpoint. Raises whatever a
    class raises; RuntimeError where a function raises, and where the config class of a class is unknown.
    """
    import torch

    module, _, name = entry.rpartition(":")
    sys.path.insert(0, str(Path.cwd()))
    found = getattr(_file_module(Path(module)) if module.endswith(".py") else importlib.import_module(module), name)
    torch.manual_seed(0)
    if not inspect.isclass(found):
        try:
            return found(dict(config))
        except Exception as error:
            message = " ".join(str(error).split())
            raise RuntimeError(
                f"{name} got one dict, the source's config, and raised {type(error).__name__}: {message}"
            ) from error
    given = _config_object(found, config)
    return found(*given) if given else found(**_accepted(found, config))


def _file_module(path: Path) -> Any:
    """The module in a file; it may import what is beside it."""
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def load_weights(model: Any, state: Mapping[str, Any], ignored: frozenset[str], aliases: Mapping[str, str]) -> None:
    """Load every tensor of the checkpoint into the model, in place, except ignored ones that the model lacks; aliases
    get the tensor of their owner. Raises RuntimeError where names or shapes differ."""
    expected = model.state_dict()
    kept = {n: t for n, t in state.items() if n in expected or n not in ignored}
    kept |= {a: kept[o] for a, o in aliases.items() if a in expected and a not in kept and o in kept}
    model.load_state_dict(kept, strict=True)


def _config_object(found: Any, config: Mapping[str, Any]) -> list[Any]:
    """The config object that a model class takes as its first argument; empty where it takes the fields themselves.

    Its class is the model's `config_class`, the annotation of the argument, or the only class named `*Config` or `*Args`
    in the module that defines its constructor.
    """
    parameters = [p for p in inspect.signature(found.__init__).parameters.values() if p.name != "self"]
    if not parameters or parameters[0].name in config:
        return []
    names = getattr(found.__init__, "__globals__", vars(sys.modules[found.__module__]))
    kind = getattr(found, "config_class", None) or parameters[0].annotation
    kind = names.get(kind) if isinstance(kind, str) else kind
    if not inspect.isclass(kind) or kind is inspect.Parameter.empty:
        classes = [c for n, c in names.items() if inspect.isclass(c) and n.endswith(("Config", "Args"))]
        kind = classes[0] if len(classes) == 1 else None
    if kind is None:
        raise RuntimeError(
            f"{found.__name__} takes {parameters[0].name}, and its class is unknown: annotate the argument, "
            "or pass FILE.py:FUNCTION with a function that builds the model"
        )
    return [kind(**_accepted(kind, config))]


def _accepted(found: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that a class takes."""
    parameters = inspect.signature(found).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {n: v for n, v in config.items() if free or n in parameters}


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def calls(
    model: Any, inputs: Mapping[str, Any], names: Mapping[str, str]
) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """The ways to pass the inputs to `model.forward`, the most likely first: by name (`names` maps an input to another
    parameter), the rest by position, in every order."""
    parameters = inspect.signature(model.forward).parameters
    named = {names.get(name, name): tensor for name, tensor in inputs.items() if names.get(name, name) in parameters}
    rest = [name for name in inputs if names.get(name, name) not in parameters]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    free = [p.name for p in parameters.values() if p.kind in positional and p.name not in named]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        free += [""] * len(rest)
    orders = sorted(permutations(rest), key=lambda order: -_likely(order, free))
    for order in orders:
        if len(free) < len(order):
            continue
        if named:  # a positional argument would take the place of a named one before it
            yield [], named | dict(zip(free, (inputs[name] for name in order), strict=False))
        else:
            yield [inputs[name] for name in order], {}


def _likely(order: tuple[str, ...], parameters: list[str]) -> int:
    """How many inputs are passed to a parameter whose name means them."""
    pairs = zip(order, parameters, strict=False)
    return sum(any(word in parameter.lower() for word in WORDS.get(name, ())) for name, parameter in pairs)

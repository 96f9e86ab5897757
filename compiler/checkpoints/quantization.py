"""Makes a checkpoint of dense tensors from one whose config.json says that its weights are quantized.

Takes an opened checkpoint and the config; returns the checkpoint in which each quantized weight is one tensor under its
own name (`Encoded`), without the tensors that it is computed from and those that only activations need. Reads no weights.
Raises Refusal: `quantized-weights`, `missing-tensor`, `wrong-shape`, `colliding-names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import AnyTensor, Encoded, Tensor, dequantized
from compiler.checkpoints.quantized_layouts import (
    LAYOUTS,
    METHODS,
    Layout,
    Misfit,
    Parts,
    quantized_ends,
    result_dtype,
)
from compiler.diagnostics import listed, refuse

FIELDS = ("quantization_config", "compression_config", "quantization")  # of a config.json; the last is MLX's


def method_of(config: Mapping[str, Any]) -> str:
    """How a config says that weights are quantized; empty if it does not."""
    settings = _settings(config)
    if not settings:
        return ""
    if "quant_method" not in settings and {"bits", "group_size"} <= settings.keys():
        return "mlx"
    return str(settings.get("quant_method") or "compressed-tensors" * ("config_groups" in settings) or "unnamed")


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = next((config[name] for name in FIELDS if config.get(name)), {})
    return found if isinstance(found, dict) else {"quant_method": found}


def decoded(checkpoint: Checkpoint, config: Mapping[str, Any], path: str) -> Checkpoint:
    """The checkpoint with dense tensors. `config` is the config.json at `path`, for which `method_of` is not empty."""
    method, settings = method_of(config), _settings(config)
    if method not in METHODS:
        hint = f"read are {listed(METHODS, 9)}; `mapspec detect` shows whether a spec reads it"
        refuse(path, f"its weights are quantized by {method!r}, which is not read", "quantized-weights", hint)
    _refuse_unread(settings, path)
    layouts = [layout for layout in LAYOUTS if layout.method == method]
    unused = tuple(end for layout in layouts for end in layout.unused)
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.endswith(unused or "\0")}
    made: dict[str, Encoded] = {}
    first: dict[str, str] = {}
    for layout in layouts:
        for stem, ends in _stems(layout, kept).items():
            encoded = _encoded(layout, stem, {end: kept.pop(stem + end) for end in ends}, settings, config, path)
            if encoded.name in made or encoded.name in kept:
                message = f"there is a dense {encoded.name} beside {stem}{ends[0]}, which becomes it"
                refuse(path, message, "colliding-names", "remove the wrong one")
            made[encoded.name] = encoded
            first[stem + ends[0]] = encoded.name
    if not made:
        known = listed(sorted(quantized_ends(method)), 4)
        hint = f"remove {listed(name for name in FIELDS if name in config)} from it if the weights are not quantized"
        message = f"it says that weights are quantized by {method}, but no tensor's name ends in {known}"
        refuse(path, message, "quantized-weights", hint)
    _refuse_others(method, kept, path)
    tensors: dict[str, AnyTensor] = {}
    for name in checkpoint.tensors:
        if name in first:
            tensors[first[name]] = made[first[name]]
        elif name in kept:
            tensors[name] = kept[name]
    dropped = sum(name.endswith(unused or "\0") for name in checkpoint.tensors)
    notes = [*dequantized(tensors.values())]
    notes += [f"{dropped} tensors that only quantized activations need are dropped"] * (dropped > 0)
    return replace(checkpoint, tensors=MappingProxyType(tensors), notes=(*checkpoint.notes, *notes))


def _stems(layout: Layout, tensors: Mapping[str, AnyTensor]) -> dict[str, list[str]]:
    """The ends of the stored tensors of each weight of a layout, by what is before them."""
    stems: dict[str, list[str]] = {}
    for name in tensors:
        if end := next((end for end in layout.marks if name.endswith(end)), ""):
            stems.setdefault(name.removesuffix(end), []).append(end)
    for stem, ends in stems.items():
        ends += [end for end in layout.plain if stem + end in tensors]
    return stems


def _encoded(
    layout: Layout, stem: str, stored: Mapping[str, AnyTensor], settings: Mapping[str, Any], config: Mapping[str, Any],
    path: str,
) -> Encoded:  # fmt: skip
    tensors = {end: tensor for end, tensor in stored.items() if isinstance(tensor, Tensor)}
    if apart := sorted(stored.keys() - tensors.keys()):
        message = f"{stem}{apart[0]} is stored in several parts, which quantized weights must not be"
        refuse(path, message, "quantized-weights", "convert the ranks into one folder first")
    text = config.get("text_config")
    dtype = result_dtype(config) or (result_dtype(text) if isinstance(text, dict) else "")
    try:
        return layout.build(Parts(stem, tensors, settings, dtype))
    except Misfit as misfit:
        hint = f"its weights are quantized by {layout.method}, according to {path}"
        where = next((str(tensor.path) for tensor in tensors.values()), path)
        refuse(where, str(misfit), misfit.kind, hint)


def _refuse_unread(settings: Mapping[str, Any], path: str) -> None:
    """Raises Refusal for a setting that changes what the stored numbers mean."""
    sparsity, transform = settings.get("sparsity_config"), settings.get("transform_config")
    sparse = isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense")
    for name, found in (("sparsity_config", sparse), ("transform_config", bool(transform))):
        if found:
            message = f"its quantization has a {name}, which is not read"
            refuse(path, message, "quantized-weights", "decompress with the package that made the folder")


def _refuse_others(method: str, tensors: Mapping[str, AnyTensor], path: str) -> None:
    """Raises Refusal for a tensor with a name of another layout."""
    own = quantized_ends(method)
    for layout in LAYOUTS:
        ends = tuple(end for end in layout.marks if end not in own)
        if name := next((name for name in tensors if name.endswith(ends or "\0")), None):
            message = f"it says that weights are quantized by {method}, but {name} has a name of {layout.method}"
            refuse(path, message, "quantized-weights", "weights that two methods quantized are not read")

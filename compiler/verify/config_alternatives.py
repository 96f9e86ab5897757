"""Other values of a config's fields that mistakes confuse: theta, eps, activation, heads, window, scaling, ties.

If a model agrees with its source after one such field is changed, that field is at fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST = 64  # alternatives of one config
_THETA = re.compile(r"(^|_)(theta|rope_base|rotary_emb_base|rotary_base)$")
_EPS = re.compile(r"(eps|epsilon)$")
_ACTIVATION = re.compile(r"^(hidden_act|hidden_activation|activation|activation_function|act_fn|dense_act_fn)$")
_HEADS = re.compile(r"^((encoder_|decoder_)?(num_)?attention_heads|n_heads?|num_heads)$")
_WINDOW = re.compile(r"(^|_)(sliding_window|window|window_size)$")
_CAP = re.compile(r"soft_?cap(ping)?$")
_TIE = re.compile(r"^tie_word_embeddings$")
_FACTOR = re.compile(r"^factor$")
_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "relu", "relu2")
# Kind of field -> the values that are tried beside those of the source's config for the same kind.
_USUAL: tuple[tuple[re.Pattern[str], tuple[Any, ...]], ...] = (
    (_THETA, (1e4, 1e5, 5e5, 1e6)),
    (_EPS, (1e-5, 1e-6, 1e-8, 1e-12)),
    (_ACTIVATION, _ACTIVATIONS),
    (_FACTOR, (2.0, 4.0, 8.0, 16.0, 32.0)),
    (_WINDOW, (None,)),
    (_CAP, (None, 30.0, 50.0)),
    (_TIE, (True, False)),
    (_HEADS, ()),
)
_SCALING = ("rope_scaling", "rope_parameters")


@dataclass(frozen=True)
class FieldChange:
    """One field with another value, and the complete `config` that has it."""

    name: str
    old: Any
    new: Any
    config: Mapping[str, Any]


def alternatives(config: Mapping[str, Any], source: Mapping[str, Any]) -> list[FieldChange]:
    """The changes of a config.json that are tried, each of one field, wherever it has that value. `source`: the source's
    config, whose numbers of the same kind are tried first."""
    found: list[FieldChange] = []
    for name, old, parent in dict.fromkeys(_fields(config, ())):
        for pattern, usual in _USUAL:
            if not pattern.search(name):
                continue
            stated = [value for other, value, _ in _fields(source, ()) if pattern.search(other)]
            doubled = [old * 2, old // 2, old * 4, old // 4] if pattern is _HEADS and isinstance(old, int) else []
            for new in dict.fromkeys([*stated, *usual, *doubled]):
                if _differs(old, new) and (new or new is None or new is False):
                    found.append(FieldChange(name, old, new, _with(config, name, old, new)))
                    if (once := _with(config, name, old, new, parent)) != found[-1].config:
                        found.append(FieldChange(".".join((*parent, name)), old, new, once))
    if (unscaled := _unscaled(config)) != config:
        scaling = next(config[name] for name in _SCALING if config.get(name))
        found.append(FieldChange("rope_scaling", scaling, None, unscaled))
    return found[:MOST]


def _differs(old: Any, new: Any) -> bool:
    """Whether `new` is another value that could take the place of `old`."""
    if old is None or new is None:
        return old is not new
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool) and old != new
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    return (numbers or (isinstance(old, str) and isinstance(new, str))) and old != new


def _fields(config: Mapping[str, Any], parent: tuple[str, ...]) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Name, value and the names of the mappings around it, of every plain field at any depth."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _fields(value, (*parent, name))
        elif not isinstance(value, list | tuple):
            yield name, value, parent


def _with(
    config: Mapping[str, Any], name: str, old: Any, new: Any, parent: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """The config with `new` for every field `name` that is `old`; with `parent`, only in that sub-config. The dialects
    of rotary settings are one sub-config."""
    place = None if parent is None else tuple(part for part in parent if part not in _SCALING)

    def changed(part: Mapping[str, Any], here: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in part.items():
            if isinstance(value, Mapping):
                found[key] = changed(value, here if key in _SCALING else (*here, key))
            elif key == name and type(value) is type(old) and value == old and place in (None, here):
                found[key] = new
            else:
                found[key] = value
        return found

    return changed(config, ())


def _unscaled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without rotary scaling."""
    found = dict(config)
    if found.get("rope_scaling"):
        found["rope_scaling"] = None
    rope = found.get("rope_parameters")
    if isinstance(rope, Mapping) and rope.get("rope_type", "default") != "default":
        kept = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
        found["rope_parameters"] = {"rope_type": "default", **kept}
    return found

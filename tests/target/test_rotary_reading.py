"""What config classes of generation 4 read of rotary fields, in configs of submodels at every depth. The classes are made
here, with the little that decides: which fields a class has, and what it takes for an absent one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from compiler.target.config_dialects import config_json
from compiler.target.rotary_reading import Held, misread

DEFAULTS = {"rope_theta": 10000.0, "rope_scaling": None, "hidden_size": 8}
NO_THETA = {"hidden_size": 8}
OTHER_NAME = {"rotary_emb_base": 10000.0, "hidden_size": 8}


def held(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Held:
    """What a class with these fields makes of a config; it keeps fields that it does not know. Mappings among the
    defaults are submodels."""
    parts = {
        name: held(config.get(name) or {}, inner) for name, inner in defaults.items() if isinstance(inner, Mapping)
    }
    fields = {**defaults, **config} | {name: dict(part.fields) for name, part in parts.items()}
    return Held(fields, frozenset(defaults), parts)


def read_otherwise(config: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What the written config.json of a source with `config` changes under generation 4."""
    written = config_json(config, model_class="X", model_type="x", dtype="float32")
    return misread(config, held(config, defaults), held(written, defaults), knows=False)


def nested(depth: int, fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    config: dict[str, Any] = {"model_type": "leaf", **fields}
    shape: dict[str, Any] = dict(defaults)
    for _ in range(depth):
        config, shape = {"model_type": "branch", "part": config}, {"part": shape}
    return read_otherwise(config, shape)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_every_depth_is_compared(depth: int) -> None:
    inside = "part." * depth
    theta = {"rope_theta": 54321.0}
    assert nested(depth, theta, DEFAULTS) == {}
    assert nested(depth, {"rope_parameters": theta | {"rope_type": "default"}}, DEFAULTS) == {}
    assert nested(depth, theta, NO_THETA) == {}  # a class without rotary fields
    assert nested(depth, theta, OTHER_NAME) == {}  # which the class ignores before and after
    found = nested(depth, {"rope_parameters": {"full_attention": theta}}, DEFAULTS)
    assert set(found) == {f"{inside}rope_parameters"}
    found = nested(depth, {"rope_local_base_freq": 777.0}, DEFAULTS)
    assert found == {f"{inside}rope_local_base_freq": (None, 777.0)}


def test_a_submodel_that_the_config_lacks_has_its_defaults() -> None:
    shape = {"part": DEFAULTS, "other": {"part": DEFAULTS}}
    assert read_otherwise({"model_type": "x", "part": {"model_type": "y", "rope_theta": 2.0}}, shape) == {}
    config = {"model_type": "x", "other": {"model_type": "z", "part": {"model_type": "y", "rope_local_base_freq": 2.0}}}
    assert set(read_otherwise(config, shape)) == {"other.part.rope_local_base_freq"}


def test_fields_that_change_nothing() -> None:
    """A share of 1, the plain kind under its former name, and any field in a class that does not rotate."""
    shares = {"rope_theta": 2.0, "rope_parameters": {"rope_theta": 2.0, "partial_rotary_factor": 1.0}}
    assert read_otherwise({"model_type": "x", **shares}, DEFAULTS) == {}
    plain = Held({"rope_scaling": {"type": "mrope", "mrope_section": [2, 2]}}, {"rope_scaling"})
    bare = Held({"rope_scaling": {"mrope_section": [2, 2]}}, {"rope_scaling"})
    assert misread(dict(plain.fields), plain, bare, knows=True) == {}
    assert read_otherwise({"model_type": "x", "rope_local_base_freq": 777.0}, NO_THETA) == {}
    share = Held({"rotary_pct": 0.25}, {"rotary_pct"})
    whole = Held({"rotary_pct": 1.0}, {"rotary_pct"})
    assert misread(dict(share.fields), share, whole, knows=True) == {"rotary_pct": (0.25, 1.0)}

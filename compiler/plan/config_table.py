"""The config.json of a plan as a table: each field with its value and where that comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from compiler.diagnostics import listed
from compiler.plan.plan import Plan
from compiler.plan.provenance import STATED, Provenance
from compiler.program.environment import Origin
from compiler.target import config_dialects

# The kinds of places, the one that deserves the most doubt first.
DOUBT = (
    Origin.GUESS, Origin.DEFAULT, Origin.RELEASE, Origin.EXAMPLE, Origin.DERIVED, Origin.CONFIG_FILE, Origin.CHECKPOINT,
    Origin.ASSIGNMENT, Origin.SHAPE, Origin.SPEC,
)  # fmt: skip
_MOST_PLACES = 3
_OF_THE_CLASS = ("architectures", "model_type")


@dataclass(frozen=True)
class ConfigRow:
    """A field of config.json. `origin`: where its value comes from, for people, such as `params.json`, `shape of
    wte.weight`, `--set`, `default`, `guess`, `released model NAME` or `spec`. `kind`: the least certain of these places,
    one of "guess", "default", "released model", "facts", "config file", "checkpoint", "--set", "shape", "spec".
    `argument`: the argument of the spec whose value the field has, which `--set` changes; "" if there is none.
    `repeats`: it is another name for values above, which other versions of Transformers read."""

    field: str
    value: Any
    origin: str
    kind: str
    argument: str = ""
    repeats: bool = False

    @property
    def text(self) -> str:
        """The value as JSON on one line."""
        return json.dumps(self.value, ensure_ascii=False, default=str)


def config_table(plan: Plan) -> list[ConfigRow]:
    """The fields of the config.json that a plan writes, without the names of the class: those of the spec in its order,
    then the dtype, and the names that other versions of Transformers have for the same values. Empty for a plan that is
    reversed, which writes no config.json."""
    if plan.reverse:
        return []
    written = config_dialects.config_json(plan.config, model_class="", model_type="", dtype=plan.dtype)
    spec = plan.program.spec
    carried = {field.name: field.carried for field in spec.config if field.carried in spec.arguments}
    rows = [
        replace(_row(name, written.get(name, value), plan.origins.get(name, ())), argument=carried.get(name) or "")
        for name, value in plan.config.items()
    ]
    for name, value in written.items():
        if name in ("dtype", "torch_dtype") and name not in plan.config:
            rows.append(ConfigRow(name, value, "weights", Origin.CHECKPOINT.value, repeats=name != "dtype"))
        elif name not in plan.config and name not in _OF_THE_CLASS:
            rows.append(replace(_row(name, value, _of_other_names(plan, name)), repeats=True))
    return rows


def _row(name: str, value: Any, places: Sequence[Provenance]) -> ConfigRow:
    kinds = {place.kind for place in places} or {Origin.SPEC}
    texts = dict.fromkeys(place.text for place in places)
    return ConfigRow(
        name, value, listed(texts, _MOST_PLACES) or STATED.text, next(kind for kind in DOUBT if kind in kinds).value
    )


def _of_other_names(plan: Plan, name: str) -> list[Provenance]:
    """The places of a field that repeats others of the spec, such as `rope_parameters`, for other versions of Transformers."""
    same = next((names for names in _REPEATED if name in names), ())
    return list(dict.fromkeys(place for other in same for place in plan.origins.get(other, ())))


_REPEATED = (
    config_dialects.EXPERTS,
    ("rope_parameters", "rope_scaling", *config_dialects.THETA, *config_dialects.SHARE, config_dialects.SLIDING_THETA,
     config_dialects.ORIGINAL),
)  # fmt: skip

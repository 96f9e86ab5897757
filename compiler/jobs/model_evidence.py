"""Which model a checkpoint is, by its config and its file names.

Several architectures have the same tensor names and shapes. `read_evidence` collects the model types of Transformers
that a config names and that file names mention, and the names of the config's fields; `compare_evidence` compares them
with a spec. A config contradicts a spec if it names model types and none of them is the spec's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from compiler.checkpoints import config_file
from compiler.diagnostics import Refusal
from compiler.program.program import Program
from compiler.settings.arguments import HOLDERS, OBJECTS
from compiler.target import model_class

CONFIG_FILES = ("config.json", "params.json", "model_config.yaml", "hparams.yaml")
# The fields of a config that name the model.
NAMING = ("model_type", "architectures", "name", "model_name", "arch", "architecture", "general.architecture", "_component_",
          "_name_or_path", "hf_config")  # fmt: skip
_WINDOW = 3  # words that are joined to one model type
_GENERIC = re.compile(r"encoder|decoder|wrapper|backbone|^(clip|fast|data|edge|align|aria|bit|git|led|van|fit)$")


@dataclass(frozen=True)
class Evidence:
    """`stated`: model types that a config names, each with its file and field; `mentioned`: those in file names;
    `fields`: names of the config's fields."""

    stated: Mapping[str, str]
    mentioned: frozenset[str]
    fields: frozenset[str]


@dataclass(frozen=True)
class Comparison:
    """How the evidence agrees with a spec, larger is better; `contradiction` and `doubt` are sentences or empty."""

    config: int
    fields: int
    files: int
    contradiction: str
    doubt: str

    @property
    def rank(self) -> tuple[int, int, int]:
        return self.config, self.fields, self.files


def read_evidence(paths: Sequence[Path], objects: Mapping[str, Any], config: Path | None) -> Evidence:
    """The evidence in a checkpoint and in the config files next to it. A config that cannot be read is skipped."""
    files = [config] if config else [f for name in CONFIG_FILES if (f := config_file.beside(paths[0], name))]
    stated: dict[str, str] = {}
    fields: set[str] = set()
    for file in files:
        try:
            read = config_file.read_config_file(file)
        except Refusal:
            continue
        fields |= {*read} | {name for key in HOLDERS if isinstance(read.get(key), dict) for name in read[key]}
        for key, text in _names(read):
            stated |= dict.fromkeys(model_types_in(text), f"{file.name}: {key} {text!r}")
    for key in OBJECTS:
        inner = objects.get(key)
        if isinstance(inner, Mapping):
            fields |= {str(name) for name in inner}
            for name, text in _names(inner):
                stated |= dict.fromkeys(model_types_in(text), f"the checkpoint: {name} {text!r}")
    for name, text in _names(objects):
        stated |= dict.fromkeys(model_types_in(text), f"the checkpoint: {name} {text!r}")
    resolved = paths[0].absolute()
    mentioned = model_types_in(resolved.name) or model_types_in(resolved.parent.name)
    return Evidence(stated, mentioned, frozenset(fields))


def compare_evidence(program: Program, evidence: Evidence) -> Comparison:
    """How the evidence agrees with the model that a spec is for."""
    own = spec_model_types(program)
    known = {*program.spec.arguments, *program.spec.facts}
    agrees = bool(own & evidence.stated.keys())
    files = bool(own & evidence.mentioned) - bool(evidence.mentioned and not own & evidence.mentioned)
    against = next(iter(evidence.stated.values()), "") if own and not agrees else ""
    doubt = listed_types(evidence.mentioned) if own and files < 0 and not agrees else ""
    return Comparison(int(agrees), len(known & evidence.fields), files, against, doubt)


def listed_types(kinds: frozenset[str]) -> str:
    return ", ".join(sorted(kinds))


def spec_model_types(program: Program) -> frozenset[str]:
    """The model types of a spec: that of its target class and those in its own name."""
    target = program.spec.target.model
    if target is None:
        return frozenset()
    return frozenset([model_class.model_type(target.value)]) | model_types_in(program.spec.name.value)


def _names(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields that name a model, also one level down."""
    for key, value in config.items():
        if key in NAMING and isinstance(value, str):
            yield key, value
        elif key == "architectures" and isinstance(value, list):
            yield from ((key, one) for one in value if isinstance(one, str))
        elif isinstance(value, Mapping) and (key in HOLDERS or key in NAMING):
            yield from ((f"{key}.{k}", v) for k, v in value.items() if k in NAMING and isinstance(v, str))


@lru_cache(4096)
def model_types_in(text: str) -> frozenset[str]:
    """The model types of Transformers that a text mentions; of those that begin at one word the longest."""
    known = _known()
    text = re.sub(r"(For[A-Z]\w*|Model|LMHead\w*)$", "", text)
    words = [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]
    kinds: set[str] = set()
    at = 0
    while at < len(words):
        for length in range(_WINDOW, 0, -1):
            joined = "".join(words[at : at + length])
            kind = known.get(joined) or (known.get(re.sub(r"\d+b?$", "", joined)) if length == 1 else None)
            kind = kind or (_ending(joined) if length == 1 else None)
            if kind and at + length <= len(words):
                kinds.add(kind)
                at += length - 1
                break
        at += 1
    return frozenset(kinds)


def _ending(word: str) -> str | None:
    """The model type that a longer word ends with."""
    ends = [kind for kind in _known() if len(kind) >= 5 and word.endswith(kind)]
    return _known()[max(ends, key=len)] if ends else None


@lru_cache(1)
def _known() -> dict[str, str]:
    """Model types without separators -> as Transformers writes them."""
    return {re.sub(r"[^a-z0-9]", "", kind): kind for kind in model_class.model_types()
            if len(kind) > 2 and not _GENERIC.search(kind)}  # fmt: skip

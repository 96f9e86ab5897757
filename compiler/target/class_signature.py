"""What a class of Transformers says of itself: the tensors of its folders and the fields of its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Step = tuple[tuple[str, str | int], ...]  # a step of a spec, as its keys and values


@dataclass(frozen=True)
class MemoryTensor:
    """A tensor of the model in memory that a folder has in another form: under the names of `targets`, patterns with the
    index `e` where an axis is taken apart, by `steps` of the spec language; a rename has none."""

    name: str
    targets: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class ClassSignature:
    """The tensors of a folder of the class. `shapes`: every tensor of the weights file, parameters and persistent buffers;
    `ties`: alias -> owner, for parameters that share the owner's tensor and are not written; `memory`: the tensors that
    the model in memory has in another form; `unsaved`: regular expressions of names that are not written, such as buffers
    that the class computes. `added`: rotary fields that
    the config lacks, under names that only this class has or with the values that it takes for them;
    `misread`: rotary field -> what the class reads from the config that it was asked about, and from the config.json that
    mapspec writes for it, for those that differ."""

    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]
    memory: tuple[MemoryTensor, ...] = ()
    unsaved: tuple[str, ...] = ()
    added: Mapping[str, Any] = field(default_factory=dict)
    misread: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigSchema:
    """The fields of one config class. `declared` by the class and its bases; `looked_for`: undeclared names that the
    model's code reads by `getattr`; `needed`: own fields of the class that change what a trained model computes;
    `synonyms`: name -> declared name; `nested`: field -> schema of the config class that its mapping becomes."""

    class_name: str
    model_type: str
    declared: tuple[str, ...]
    looked_for: tuple[str, ...]
    needed: tuple[str, ...]
    synonyms: Mapping[str, str]
    nested: Mapping[str, ConfigSchema]


@dataclass(frozen=True)
class CodeClasses:
    """`auto_map`: auto class -> `module.Class`, as config.json has it; `fields`: names that the config class takes."""

    model_type: str
    auto_map: Mapping[str, str]
    fields: tuple[str, ...]

"""Notes: what a conversion reports that is not a problem. Data, one class for each kind of note.

`compiler.cli.notes` turns them into sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Remark:
    """What a reader or writer did, as a sentence."""

    text: str


@dataclass(frozen=True)
class ChosenSpec:
    """The spec that `auto` picked."""

    name: str
    summary: str


@dataclass(frozen=True)
class ConfigNextToWeights:
    """The config file that was read because it is next to the weights."""

    path: Path


@dataclass(frozen=True)
class DefaultArguments:
    """The arguments that have their default values."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class UnreadFields:
    """Fields of the config that the spec does not read."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class DerivedArguments:
    """Arguments that are computed from the checkpoint's facts."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class ReleasedArguments:
    """Arguments of released models, recognized by their sizes, or `named` by the user."""

    models: tuple[str, ...]
    named: bool
    values: Mapping[str, Any]


@dataclass(frozen=True)
class GuessedArgument:
    """An argument with a default that not all releases of the family have; `help` names those with other values."""

    name: str
    value: Any
    help: str


@dataclass(frozen=True)
class UnevenShapes:
    """Tensors of one rule that differ in shape: `count` have the shape `usual`; the (name, shape) of the others."""

    usual: tuple[int, ...]
    count: int
    others: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class IntegerTensors:
    """Integer targets with more than one axis, as (name, dtype)."""

    tensors: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class IgnoredTensors:
    """Source tensors that the spec ignores, as (name, reason)."""

    tensors: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ClassAgrees:
    """The class, built from the config that is written, has the names, shapes and ties of the target."""

    model_class: str


Note = (
    ClassAgrees
    | Remark
    | ChosenSpec
    | ConfigNextToWeights
    | DefaultArguments
    | UnreadFields
    | DerivedArguments
    | ReleasedArguments
    | GuessedArgument
    | UnevenShapes
    | IntegerTensors
    | IgnoredTensors
)
Listener = Callable[[Note], None]


def ignore_note(note: Note) -> None:
    """Does nothing: the listener of a caller who wants no notes."""

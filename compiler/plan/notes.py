"""What a conversion reports and a person may want to know: data, one class for each kind of note.

`compiler.cli.notes` turns them into sentences. A note is no problem: those are `Diagnostic`s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Remark:
    """A sentence of a reader or writer about what it did."""

    text: str


@dataclass(frozen=True)
class ChosenSpec:
    """The spec that `auto` found."""

    name: str
    summary: str


@dataclass(frozen=True)
class ConfigBesideWeights:
    """A config file that nobody named and that was read."""

    path: Path


@dataclass(frozen=True)
class DefaultArguments:
    """Arguments that took their defaults, with these."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class UnreadFields:
    """Fields of the config that the spec does not know."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class DerivedArguments:
    """Arguments that follow from the checkpoint's facts."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class ReleasedArguments:
    """Arguments of released models, recognised by their sizes or `named` by the user."""

    models: tuple[str, ...]
    named: bool
    values: Mapping[str, Any]


@dataclass(frozen=True)
class GuessedArgument:
    """An argument that took a default which releases of the family do not share; `help` says which have others."""

    name: str
    value: Any
    help: str


@dataclass(frozen=True)
class UnevenShapes:
    """Tensors of one rule whose shapes differ: the `usual` shape of `count` of them, and the (name, shape) of others."""

    usual: tuple[int, ...]
    count: int
    others: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class IntegerTensors:
    """Targets of whole numbers with more than one axis: (name, dtype)."""

    tensors: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class IgnoredTensors:
    """Source tensors that the spec ignores: (name, reason)."""

    tensors: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ClassAgrees:
    """The names, shapes and ties of the target are those of this class with the config that is written."""

    model_class: str


Note = (
    ClassAgrees
    | Remark
    | ChosenSpec
    | ConfigBesideWeights
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
    """The listener of a caller who wants no notes."""

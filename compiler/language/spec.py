"""The checked form of what a person wrote: frozen values, every text with its place. `reading` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.diagnostics import Span
from compiler.language.document import Node
from compiler.language.expression import Expr

STEP_MODIFIERS = ("sizes", "parts", "axis", "only")  # keys of a step that are not the word of an op


@dataclass(frozen=True)
class Text:
    value: str
    span: Span

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Argument:
    """A value that no shape can tell. `required` when it has no default."""

    name: str
    default: Any
    required: bool
    help: str
    span: Span


@dataclass(frozen=True)
class Entry:
    """A rename, a keep (`source is target`) or a tie."""

    source: Text
    target: Text
    when: Expr | None


@dataclass(frozen=True)
class Named:
    """A name pattern of a transform, and the size that may stand beside it."""

    pattern: Text
    size: Expr | None


@dataclass(frozen=True)
class Step:
    """One op as written: its word, the word's value and the values beside it."""

    word: str
    values: Mapping[str, Node]
    span: Span


@dataclass(frozen=True)
class Transform:
    name: Text
    sources: tuple[Named, ...]
    targets: tuple[Named, ...]
    steps: tuple[Step, ...]
    when: Expr | None
    span: Span


@dataclass(frozen=True)
class Merge:
    """Files that share a name hold parts of one tensor: joined along `axis`, block by block."""

    pattern: Text
    axis: Expr
    blocks: int


@dataclass(frozen=True)
class Create:
    """A target that the source lacks: for each source tensor that `like` names, one of its type that holds `fill`."""

    target: Text
    like: Text
    shape: tuple[Node, ...] | None  # None: the shape of that tensor
    fill: float
    when: Expr | None


@dataclass(frozen=True)
class Field:
    """A field of the target's config: a constant (`expr is None`) or an expression."""

    name: str
    expr: Expr | None
    constant: Any
    span: Span

    @property
    def carried(self) -> str | None:
        """The argument or fact whose value the field holds unchanged."""
        return self.expr.text if self.expr is not None and self.expr.text.isidentifier() else None


@dataclass(frozen=True)
class TargetModel:
    """Path A: `model`. Path B: `remote_code`, the classes and the blocks."""

    model: Text | None
    remote_code: Text | None
    config_class: Text | None
    model_class: Text | None
    blocks: Node | None
    span: Span

    @property
    def class_name(self) -> str:
        """The model class of either path."""
        named = self.model or self.model_class
        return named.value if named else ""


@dataclass(frozen=True)
class Spec:
    path: str
    name: Text
    summary: str
    weights: str
    source_config: str
    nested: bool
    target: TargetModel
    arguments: Mapping[str, Argument]
    facts: Mapping[str, Expr]
    indices: Mapping[str, Expr]  # the numbers that an index of the names stands for, where not for all
    require: tuple[tuple[Expr, str], ...]
    config: tuple[Field, ...]
    fields: Mapping[str, Field]
    keep_all: bool
    keep: tuple[Entry, ...]
    rename: tuple[Entry, ...]
    transform: tuple[Transform, ...]
    tie: tuple[Entry, ...]
    ignore: tuple[tuple[Text, str], ...]
    create: tuple[Create, ...]
    merge: tuple[Merge, ...]
    tokenizer: TiktokenSection | None
    examples: tuple[Mapping[str, tuple[Any, Span]], ...]
    undecided: tuple[tuple[Text, str], ...]  # of a draft: what, and the question
    root: Node = field(compare=False, repr=False)


def in_parts(weights: str) -> bool:
    """Whether the glob of a spec names the parts of one checkpoint."""
    return "*" in weights and not weights.startswith("*")


@dataclass(frozen=True)
class TiktokenSection:
    """The `pattern` that cuts a text into words, a Unicode form to `normalize` to or "", and `count` special tokens whose
    ids follow the ranks: those `named` with their places, the `others` numbered by `{n}`. `begins`: a text, with bos."""

    pattern: str
    normalize: str
    begins: bool
    count: int
    named: Mapping[str, Expr]
    others: str
    span: Span

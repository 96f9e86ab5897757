"""A spec as frozen values, every text with its place in the file. `parser` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
    """A value that shapes do not reveal. Where nothing gives it: an error if `required`, else the value of `derive` (an
    error if that is null), else the `default`. A default that releases of the family do not share is a `guess`.
    """

    name: str
    default: Any
    required: bool
    help: str
    span: Span
    derive: Expr | None = None
    guess: bool = False


@dataclass(frozen=True)
class ReleasedModel:
    """A published model, recognised by its sizes: facts by name in `when`; `sets` holds its arguments by name."""

    name: str
    when: Mapping[str, Any]
    sets: Mapping[str, Any]
    span: Span


@dataclass(frozen=True)
class FixedField:
    """A field of the source's config that must have one of `values`, and the reason, or ""."""

    name: str
    values: tuple[Any, ...]
    reason: str
    span: Span

    def allows(self, value: Any) -> bool:
        """Whether a config may state `value`. A null counts as false."""
        return any(value == one or (value is None and one is False) for one in self.values)


@dataclass(frozen=True)
class Entry:
    """A rename, a keep (`source is target`) or a tie."""

    source: Text
    target: Text
    when: Expr | None


@dataclass(frozen=True)
class Named:
    """A name pattern of a transform, and its size if one is given."""

    pattern: Text
    size: Expr | None


@dataclass(frozen=True)
class Step:
    """One op as written: its name, and all keys of the step with their values."""

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
    """Parts of one tensor in several files: joined along `axis`, block by block. `lengths`: of the blocks of the first part,
    where they are not equal. With `by`, each part has the tensors of a range of that index, and there is no axis."""

    pattern: Text
    axis: Expr | None
    blocks: int
    lengths: tuple[Expr, ...]
    by: Text


@dataclass(frozen=True)
class Ranks:
    """The indices of names that model-parallel files count from 0: of layers in each `pipeline` stage, of experts in each
    `expert`-parallel rank. `first`: tensors of the first stage that have no such index; the others are of the last stage.
    `copies`: tensors of the last stage that repeat one of the first stage where weights are tied.
    `numbers`: what each number in the path of a file is; empty for tensor, pipeline, expert."""

    pipeline: Text
    expert: Text
    first: tuple[Text, ...]
    copies: tuple[tuple[Text, Text], ...]
    numbers: tuple[str, ...]


@dataclass(frozen=True)
class Create:
    """A target tensor that the source lacks: one for each source tensor that matches `like`, of its dtype, filled with `fill`."""

    target: Text
    like: Text
    shape: tuple[Node, ...] | None  # None: the shape of that tensor
    fill: float
    when: Expr | None


@dataclass(frozen=True)
class VerifyInput:
    """An input with which `compile verify` runs the models: `kind` is tokens, floats or mask; `below` bounds tokens;
    `source` is the source model's name for it, where that is another."""

    name: Text
    kind: str
    shape: tuple[Expr, ...]
    below: Expr | None
    source: str


@dataclass(frozen=True)
class Field:
    """A field of the target's config: a constant (`expr is None`) or an expression."""

    name: str
    expr: Expr | None
    constant: Any
    span: Span

    @property
    def carried(self) -> str | None:
        """The argument or fact whose value the field has unchanged."""
        return self.expr.text if self.expr is not None and self.expr.text.isidentifier() else None


@dataclass(frozen=True)
class SourceLayout:
    """How `--reverse` writes a source: the name of its weights `file`, which a single file has in place of the glob; the
    keys of a torch file under which the `state_dict` and the model's `arguments` are (as an argparse.Namespace if
    `namespace`), what is beside them, the `objects`; the `dictionaries` in
    which names are nested, as beginnings of names; the key of the config that is the `holder` of the
    model's fields. Torch files are in the subfolder `folder`, and `texts` are files beside it. Beside a
    distributed checkpoint, the torch file `common` has the arguments and the objects.

    The fields are the arguments, the facts that become config fields, and the fixed fields, except those in `omit`
    (`omit_all`: none of them), and those of `fields`.
    """

    file: str = ""
    state_dict: tuple[str, ...] = ()
    arguments: str = ""
    namespace: bool = False
    holder: str = ""
    omit: tuple[Text, ...] = ()
    omit_all: bool = False
    fields: tuple[Field, ...] = ()
    constants: tuple[Field, ...] = ()
    folder: str = ""
    objects: tuple[Field, ...] = ()
    dictionaries: tuple[str, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    common: str = ""

    def path(self, name: str) -> str:
        """The path of a torch file of that name."""
        return f"{self.folder}/{name}" if self.folder else name


@dataclass(frozen=True)
class NamedSource:
    """One of several sources. `part`: the key of its config that holds its fields. `overlays`, `fills`: the source whose
    tensors it replaces, or completes; "" for none."""

    name: Text
    weights: str
    config: str
    part: str
    nested: bool
    optional: bool
    overlays: str
    fills: str
    model_types: tuple[str, ...]
    fixed: Mapping[str, FixedField]
    unread: tuple[tuple[Text, str], ...]

    @property
    def joins(self) -> str:
        """The source that this one becomes a part of; "" where its tensors have its own name."""
        return self.overlays or self.fills


@dataclass(frozen=True)
class TargetModel:
    """Path A: `model`. Path B: `remote_code`, the classes and the blocks; or `code`, a file that defines the classes."""

    model: Text | None
    remote_code: Text | None
    code: Text | None
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
    model_types: tuple[str, ...]
    fixed: Mapping[str, FixedField]
    unread: tuple[tuple[Text, str], ...]
    layout: SourceLayout
    target: TargetModel
    arguments: Mapping[str, Argument]
    models: tuple[ReleasedModel, ...]
    facts: Mapping[str, Expr]
    indices: Mapping[str, Expr]  # the guard of an index: which numbers it matches; by default all
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
    ranks: Ranks | None
    tokenizer: TiktokenSection | None
    verify_inputs: tuple[VerifyInput, ...]
    processor: ProcessorSection | None
    examples: tuple[Mapping[str, tuple[Any, Span]], ...]
    undecided: tuple[tuple[Text, str], ...]  # of a draft: the key, and the open question
    root: Node = field(compare=False, repr=False)
    sources: tuple[NamedSource, ...] = ()  # several, in place of one, in the order of the spec
    part_of: str = ""  # for the reading of the config of one of several sources: the name of that source

    @property
    def example_values(self) -> list[dict[str, Any]]:
        """The examples without their places."""
        return [{name: value for name, (value, _) in example.items()} for example in self.examples]

    @property
    def source_words(self) -> str:
        """The words that name its sources in a command: `SOURCE`, or of several those that may not be left out."""
        return " ".join(f"{source.name}=PATH" for source in self.sources if not source.optional) or "SOURCE"

    @property
    def code_file(self) -> Path:
        """The user's model code, which lies beside the spec. Only for a target with `code`."""
        assert self.target.code is not None
        return Path(self.path).parent / self.target.code.value


def in_parts(weights: str) -> bool:
    """Whether the glob matches the parts of one checkpoint."""
    return "*" in weights and not weights.startswith("*")


@dataclass(frozen=True)
class ProcessorSection:
    """What `preprocessor_config.json` holds: the classes of the processor and its parts, and fields of constants and
    expressions."""

    classes: Mapping[str, str]
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class TiktokenSection:
    """How a tiktoken file is used: `pattern` splits text, `normalize` is a Unicode form or "", and `count` special tokens
    have the ids after the ranks: `named` ones at their places, the `others` numbered by `{n}`. `begins`: texts start with
    bos_token_id."""

    pattern: str
    normalize: str
    begins: bool
    count: int
    named: Mapping[str, Expr]
    others: str
    span: Span

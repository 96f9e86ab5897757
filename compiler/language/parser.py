"""Document to Spec: every value with its place. Checks what a JSON Schema cannot express."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compiler.diagnostics import Refusal, Report, Span, listed, nearest, refuse
from compiler.language import document
from compiler.language.document import Node, Scalar
from compiler.language.expression import Expr, parse_expr
from compiler.language.schema import op_words, validate
from compiler.language.spec import (
    Argument,
    Create,
    Entry,
    Field,
    FixedField,
    Merge,
    Named,
    ProcessorSection,
    Ranks,
    ReleasedModel,
    SourceLayout,
    Spec,
    Step,
    TargetModel,
    Text,
    TiktokenSection,
    Transform,
    VerifyInput,
)


def load_spec(path: str | Path, text: str | None = None) -> Spec:
    """Read and check the YAML spec at `path` (or `text`, reported under that path). Raises Refusal."""
    return read_spec(document.read_document(path, text))


def read_spec(root: Node) -> Spec:
    """The Spec of a Document. Raises Refusal with all schema errors."""
    if not isinstance(root, document.Mapping):
        refuse(root.span, "a spec is a mapping of keys", "wrong-type", "the first key is 'spec: 1'")
    report = Report()
    validate(root, report)
    report.settle()
    target = _target(root, report)
    arguments = {key.text: _argument(key, node, report) for key, node in _entries(root, "arguments")}
    facts = {key.text: _expr(node) for key, node in _entries(root, "facts")}
    config = tuple(_config(root, report))
    fields = {field.name: field for field in _fields(root, report)}
    config += tuple(_completed(fields, arguments, facts, {field.name for field in config}))
    facts |= _facts_of_fields(config, {**arguments, **facts})
    spec = Spec(
        path=root.span.path,
        name=_text(root, "name"),
        summary=_text(root, "summary").value,
        weights=_string(root.get("source"), "weights"),
        source_config=_string(root.get("source"), "config"),
        nested=_string(root.get("source"), "nested") == "true",
        model_types=tuple(str(document.plain(node)) for node in _items(root.get("source"), "model_types")),
        fixed={key.text: _fixed(key, node, report) for key, node in _entries(root.get("source"), "fixed")},
        unread=tuple(
            (Text(key.text, key.span), str(document.plain(node)))
            for key, node in _entries(root.get("source"), "unread")
        ),
        layout=_layout(root.get("source")),
        target=target,
        arguments=arguments,
        models=tuple(_model(key, node) for key, node in _entries(root, "models")),
        facts=facts,
        indices={key.text: _expr(node) for key, node in _entries(root, "indices")},
        require=tuple((_expr(key), document.plain(node)) for key, node in _entries(root, "require")),  # type: ignore[misc]
        config=config,
        fields=fields,
        keep_all=isinstance(root.get("keep"), Scalar),
        keep=tuple(_keep(root)),
        rename=tuple(_entry(key, node) for key, node in _entries(root, "rename")),
        transform=tuple(_transform(node, report) for node in _items(root, "transform")),
        tie=tuple(_entry(key, node) for key, node in _entries(root, "tie")),
        ignore=tuple((Text(key.text, key.span), str(document.plain(node))) for key, node in _entries(root, "ignore")),
        create=tuple(_create(key, node) for key, node in _entries(root, "create")),
        merge=tuple(_merge(key, node) for key, node in _entries(root.get("source"), "merge")),
        ranks=_ranks(root.get("source")),
        tokenizer=read_special(root.get("tokenizer")),
        verify_inputs=tuple(_verify_input(key, node) for key, node in _entries(root.get("verify"), "inputs")),
        processor=_processor(root.get("processor")),
        examples=tuple(_examples(root)),
        undecided=tuple(
            (Text(key.text, key.span), str(document.plain(node))) for key, node in _entries(root, "undecided")
        ),
        root=root,
    )
    stem = Path(spec.path).stem
    if spec.path.endswith((".yaml", ".yml")) and spec.name.value != stem:
        report.add(
            spec.name.span,
            f"the spec's name is {spec.name.value!r}, but its file is {stem!r}",
            "name-mismatch",
            "the name must equal the file name",
        )
    report.settle()
    return spec


# ---------------------------------------------------------------------------------------------------------------------
# Its parts


def _entries(node: Node | None, key: str) -> tuple[tuple[Scalar, Node], ...]:
    found = node.get(key) if isinstance(node, document.Mapping) else None
    return found.entries if isinstance(found, document.Mapping) else ()


def _items(node: Node | None, key: str) -> tuple[Node, ...]:
    found = node.get(key) if isinstance(node, document.Mapping) else None
    return found.items if isinstance(found, document.Sequence) else ()


def _text(node: Node | None, key: str) -> Text:
    found = node.get(key) if isinstance(node, document.Mapping) else None
    return Text(found.text, found.span) if isinstance(found, Scalar) else Text("", node.span if node else Span(""))


def _string(node: Node | None, key: str) -> str:
    return _text(node, key).value


def _expr(node: Node) -> Expr:
    assert isinstance(node, Scalar)
    # YAML spells true, false and null differently from Python.
    words = {True: "True", False: "False", None: "None"}
    text = words[node.value] if node.value is None or isinstance(node.value, bool) else node.text.strip()
    return Expr(text, node.span)


def _argument(key: Scalar, node: Node, report: Report) -> Argument:
    if not isinstance(node, document.Mapping):
        return Argument(key.text, document.plain(node), False, "", key.span)
    given = [word for word in ("default", "derive", "guess") if node.get(word)]
    if len(given) > 1:
        message = f"{key.text} has both {given[0]!r} and {given[1]!r}"
        report.add(key.span, message, "wrong-value", "an argument has one of default, derive and guess, or none")
    guess, derive = node.get("guess"), node.get("derive")
    if guess and not _string(node, "help"):
        message = f"the guess of {key.text} has no 'help'"
        report.add(key.span, message, "missing-key", "name the releases that have other values")
    default = node.get("default") or guess
    value = document.plain(default) if default else None
    required, expr = not given, _expr(derive) if derive else None
    return Argument(key.text, value, required, _string(node, "help"), key.span, expr, guess is not None)


def _model(key: Scalar, node: Node) -> ReleasedModel:
    sides = [{k.text: document.plain(v) for k, v in _entries(node, side)} for side in ("when", "set")]
    return ReleasedModel(key.text, sides[0], sides[1], key.span)


def _fixed(key: Scalar, node: Node, report: Report) -> FixedField:
    if isinstance(node, document.Mapping):
        if (node.get("value") is None) == (node.get("values") is None):
            message = f"{key.text} needs either 'value' or 'values'"
            report.add(key.span, message, "missing-key", "write the value itself, or {value: ..., reason: ...}")
        one, several = node.get("value"), _items(node, "values")
        values = tuple(document.plain(item) for item in several) if several else (one and document.plain(one),)
        return FixedField(key.text, values, _string(node, "reason"), key.span)
    return FixedField(key.text, (document.plain(node),), "", key.span)


def _layout(source: Node | None) -> SourceLayout:
    node = source.get("reverse") if isinstance(source, document.Mapping) else None
    if not isinstance(node, document.Mapping):
        return SourceLayout()
    omit = node.get("omit")
    return SourceLayout(
        file=_string(node, "file"),
        state_dict=tuple(_string(node, "state_dict").split(".")) if node.get("state_dict") else (),
        arguments=_string(node, "arguments") or _string(node, "namespace"),
        namespace=node.get("namespace") is not None,
        holder=_string(node, "holder"),
        omit=tuple(Text(i.text, i.span) for i in _items(node, "omit") if isinstance(i, Scalar)),
        omit_all=isinstance(omit, Scalar),
        fields=tuple(Field(key.text, _expr(value), None, key.span) for key, value in _entries(node, "fields")),
        constants=tuple(Field(key.text, _expr(value), None, key.span) for key, value in _entries(node, "constants")),
    )


def _target(root: document.Mapping, report: Report) -> TargetModel:
    node = root.get("target")
    assert isinstance(node, document.Mapping)
    optional = {k: _text(node, k) if node.get(k) else None for k in ("model", "remote_code", "code")}
    classes = node.get("classes")
    given = [key for key, text in optional.items() if text is not None]
    if len(given) != 1:
        text = f"the target has {' and '.join(map(repr, given))}" if given else "the target is not named"
        hint = "give one of: model (a class of Transformers), remote_code (rendered), code (a Python file)"
        report.add(node.span, text, "missing-key", hint)
    own = node.get("class")
    if optional["code"] and own is None:
        report.add(node.span, "a target with 'code' needs 'class'", "missing-key", "the model class in the file")
    if optional["remote_code"] and (classes is None or node.get("blocks") is None):
        report.add(node.span, "a target of remote code needs 'classes' and 'blocks'", "missing-key")
    keys = {"remote_code": ("classes", "blocks"), "code": ("class", "config_class")}
    for owner, names in keys.items():
        for extra in [key for name in names if (key := node.key(name)) and owner not in given]:
            report.add(extra.span, f"{extra.text!r} belongs to a target with {owner!r}", "unknown-key")
    return TargetModel(
        model=optional["model"],
        remote_code=optional["remote_code"],
        code=optional["code"],
        config_class=_text(classes, "config")
        if classes
        else _text(node, "config_class")
        if node.get("config_class")
        else None,
        model_class=_text(classes, "model") if classes else _text(node, "class") if own else None,
        blocks=node.get("blocks"),
        span=node.span,
    )


def _config(root: document.Mapping, report: Report) -> Iterator[Field]:
    table = root.get("config")
    seen: dict[str, Span] = {}

    def field_(name: Scalar, expr: Expr | None, constant: Any = None) -> Field:
        if name.text in seen:
            report.add(
                name.span,
                f"the config field {name.text!r} is given twice",
                "duplicate-field",
                f"the first is at line {seen[name.text].line}",
            )
        seen.setdefault(name.text, name.span)
        return Field(name.text, expr, constant, name.span)

    if isinstance(table, document.Mapping) and isinstance(copied := table.get("copy"), document.Sequence):
        for item in copied.items:
            assert isinstance(item, Scalar)
            yield field_(item, Expr(item.text, item.span))
    for key, node in _entries(table, "rename"):
        yield field_(key, Expr(str(document.plain(node)), node.span))
    for key, node in _entries(table, "derive"):
        yield field_(key, _expr(node))
    for key, node in _entries(table, "set"):
        yield field_(key, None, document.plain(node))


def _fields(root: document.Mapping, report: Report) -> Iterator[Field]:
    """The fields of a configuration class. A text over other fields is an expression, any other a constant."""
    entries = _entries(root.get("config"), "fields")
    names = {key.text for key, _ in entries}
    for key, node in entries:
        value = document.plain(node)
        if isinstance(node, Scalar) and isinstance(value, str) and (value in names or not value.isidentifier()):
            expr = Expr(node.text.strip(), node.span)
            try:
                parse_expr(expr.text, expr.span)
            except Refusal as refusal:
                report.absorb(refusal)
                continue
            for name in sorted(expr.names - names):
                report.add(expr.name_span(name), f"there is no field {name!r}", "unknown-name", nearest(name, names))
            yield Field(key.text, expr, None, key.span)
        else:
            yield Field(key.text, None, value, key.span)


def _completed(
    fields: Mapping[str, Field], arguments: dict[str, Argument], facts: dict[str, Expr], given: set[str]
) -> Iterator[Field]:
    """A field that is not filled otherwise takes the value of the argument or fact of its name, which is made if missing."""
    for name, field in fields.items():
        if name in given:
            continue
        if name not in arguments and name not in facts:
            if field.expr is not None:
                facts[name] = field.expr
            else:
                arguments[name] = Argument(name, field.constant, False, "", field.span)
        yield Field(name, Expr(name, field.span), None, field.span)


def _facts_of_fields(config: tuple[Field, ...], known: Mapping[str, object]) -> dict[str, Expr]:
    """A config field that the expression of another one names, such as `hidden_size // num_attention_heads`, where it is
    neither an argument nor a fact: a fact of its own."""
    fields = {field.name: field for field in config}
    found: dict[str, Expr] = {}
    names = {name for field in config for name in _names_of(field.expr)}
    while missing := sorted(name for name in names if name in fields and name not in known and name not in found):
        for name in missing:
            field = fields[name]
            found[name] = field.expr or Expr(repr(field.constant), field.span)
            names |= _names_of(field.expr)
    return found


def _names_of(expr: Expr | None) -> frozenset[str]:
    try:
        return expr.names if expr is not None else frozenset()
    except Refusal:
        return frozenset()  # `consistency` reports it


def _when(node: Node) -> Expr | None:
    found = node.get("when") if isinstance(node, document.Mapping) else None
    return _expr(found) if found else None


def _entry(key: Scalar, node: Node) -> Entry:
    target = _text(node, "to") if isinstance(node, document.Mapping) else Text(str(document.plain(node)), node.span)
    return Entry(Text(key.text, key.span), target, _when(node))


def _keep(root: document.Mapping) -> Iterator[Entry]:
    for item in _items(root, "keep"):
        name = _text(item, "name") if isinstance(item, document.Mapping) else Text(str(document.plain(item)), item.span)
        yield Entry(name, name, _when(item))


def _merge(key: Scalar, node: Node) -> Merge:
    pattern = Text(key.text, key.span)
    if not isinstance(node, document.Mapping):
        return Merge(pattern, _expr(node), 1, (), Text("", key.span))
    axis, blocks = node.get("axis"), node.get("blocks")
    lengths = tuple(map(_expr, blocks.items)) if isinstance(blocks, document.Sequence) else ()
    count = len(lengths) or (document.plain(blocks) if blocks else 1)
    return Merge(pattern, _expr(axis) if axis else None, count, lengths, _text(node, "by"))  # type: ignore[arg-type]


def _ranks(source: Node | None) -> Ranks | None:
    node = source.get("ranks") if isinstance(source, document.Mapping) else None
    if node is None:
        return None
    copies = tuple(
        (Text(key.text, key.span), Text(str(document.plain(value)), value.span))
        for key, value in _entries(node, "copies")
    )
    numbers = tuple(str(document.plain(item)) for item in _items(node, "numbers"))
    return Ranks(_text(node, "pipeline"), _text(node, "expert"), copies, numbers)


def _verify_input(key: Scalar, node: Node) -> VerifyInput:
    assert isinstance(node, document.Mapping)
    shape, below = node.get("shape"), node.get("below")
    sizes = tuple(_expr(size) for size in shape.items) if isinstance(shape, document.Sequence) else ()
    name = Text(key.text, key.span)
    return VerifyInput(name, _string(node, "kind"), sizes, _expr(below) if below else None, _string(node, "source"))


def _create(key: Scalar, node: Node) -> Create:
    assert isinstance(node, document.Mapping)
    shape, fill = node.get("shape"), document.plain(node.get("fill"))  # type: ignore[arg-type]
    sizes = shape.items if isinstance(shape, document.Sequence) else None
    value = {"zeros": 0.0, "ones": 1.0}.get(fill, fill) if isinstance(fill, str) else float(fill)  # type: ignore[arg-type]
    return Create(Text(key.text, key.span), _text(node, "like"), sizes, value, _when(node))  # type: ignore[arg-type]


def _names(node: Node) -> tuple[Named, ...]:
    match node:
        case Scalar():
            return (Named(Text(node.text, node.span), None),)
        case document.Sequence():
            return tuple(Named(Text(i.text, i.span), None) for i in node.items if isinstance(i, Scalar))
    return tuple(Named(Text(key.text, key.span), _expr(value)) for key, value in node.entries)


def _transform(node: Node, report: Report) -> Transform:
    assert isinstance(node, document.Mapping)
    source, target = node.get("from"), node.get("to")
    assert source is not None
    assert target is not None
    steps = node.get("steps")
    if isinstance(steps, document.Sequence):
        if extra := next((k for k, _ in node.entries if k.text in op_words()), None):
            report.add(extra.span, f"{extra.text!r} next to 'steps'", "ambiguous-step", "move it into the list")
        found = tuple(_step(step, report) for step in steps.items)
    else:
        found = (_step(node, report),)
    return Transform(_text(node, "name"), _names(source), _names(target), found, _when(node), node.span)


def _step(node: Node, report: Report) -> Step:
    assert isinstance(node, document.Mapping)
    values = {key.text: value for key, value in node.entries}
    words = [key for key, _ in node.entries if key.text in op_words()]
    if len(words) != 1:
        report.add(
            words[1].span if words else node.span,
            f"a step has exactly one op; this one has {listed(w.text for w in words) if words else 'none'}",
            "ambiguous-step",
            f"the ops are {', '.join(op_words())}; write a chain of ops as a list under 'steps'",
        )
        return Step("", values, node.span)
    return Step(words[0].text, values, words[0].span)


def _examples(root: document.Mapping) -> Iterator[Mapping[str, tuple[Any, Span]]]:
    node = root.get("example")
    for one in node.items if isinstance(node, document.Sequence) else (node,):
        if isinstance(one, document.Mapping):
            yield {key.text: (document.plain(value), key.span) for key, value in one.entries}


PROCESSOR_CLASSES = {
    "class": "processor_class",
    "image_processor": "image_processor_type",
    "feature_extractor": "feature_extractor_type",
}


def _processor(node: Node | None) -> ProcessorSection | None:
    """The `processor` section."""
    if not isinstance(node, document.Mapping):
        return None
    classes = {field: str(document.plain(name)) for key, field in PROCESSOR_CLASSES.items() if (name := node.get(key))}
    return ProcessorSection(
        classes,
        tuple(
            Field(key.text, Expr(value.text.strip(), value.span), None, key.span)
            if isinstance(value, Scalar) and isinstance(document.plain(value), str)
            else Field(key.text, None, document.plain(value), key.span)
            for key, value in _entries(node, "fields")
        ),
    )


def read_special(node: Node | None) -> TiktokenSection | None:
    """The `tokenizer` section."""
    if not isinstance(node, document.Mapping):
        return None
    values, special = document.plain(node), node.get("special")
    assert isinstance(values, dict)
    assert isinstance(special, document.Mapping)
    named = special.get("named")
    places = named.entries if isinstance(named, document.Mapping) else ()
    return TiktokenSection(
        pattern=values["pattern"],
        normalize=values.get("normalize", ""),
        begins=values.get("begins", False),
        count=values["special"]["count"],
        named={key.text: Expr(place.text.strip(), place.span) for key, place in places if isinstance(place, Scalar)},
        others=values["special"]["others"],
        span=node.span,
    )

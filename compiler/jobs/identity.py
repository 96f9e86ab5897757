"""The identity target `hf`: a checkpoint whose tensors have the names of a class of Transformers already.

The class and its config are those of the config.json with the checkpoint; the names, shapes and ties are what the class
says of itself. What differs between a trainer's state dict and a folder becomes a spec like any other, written here:
tensors that Transformers fuses in memory are taken apart, tied and computed tensors are dropped, all others keep their
names. Everything else is the work of a run with any spec.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.checkpoints import config_file
from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.checkpoints.folder import companions
from compiler.checkpoints.quantization import FIELDS, decoded, method_of
from compiler.diagnostics import Diagnostic, Refusal, Span, listed, nearest, refuse
from compiler.jobs.request import Request
from compiler.language.document import Mapping, Node, Scalar, Sequence, read_document
from compiler.language.parser import read_spec
from compiler.program.loading import compile_spec
from compiler.program.program import Program, QuantizedBy
from compiler.source.source_files import DEPTH
from compiler.target import config_class, config_dialects, config_values, model_class
from compiler.target.ask_class import PendingAnswer
from compiler.target.class_signature import ClassSignature
from compiler.target.signature_cache import ClassQuestion
from compiler.tensor_names import NUMBER

NAME = "hf"
SUMMARY = "The checkpoint's tensors have the names of its Transformers class"
# Fields of a config.json that every run writes itself, or that describe a folder rather than a model.
_NOT_COPIED = frozenset(
    [
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "model_type",
        "torch_dtype",
        "transformers_version",
        *FIELDS,
    ]
)


@dataclass(frozen=True)
class NamedClass:
    """The class of Transformers that a config.json names."""

    name: str
    config: dict[str, Any]
    path: Path


def identity_program(request: Request, named: NamedClass | None = None) -> Program:
    """The program that keeps a source's tensors under the names of the class that its config.json names.

    Reads the headers of the source; the class is asked, which imports Transformers if the answer is not cached. Raises
    Refusal: `missing-config`, `unknown-class`, `quantized-weights`, and what opening the source raises.
    """
    if named is None:
        named = required_class(request)
    else:
        _check_types(named.path, named.config)
    paths = [Path(path) for path in request.source]
    checkpoint = open_checkpoint(paths[0] if len(paths) == 1 else paths, request.weights)
    quantized_by = None
    if method_of(named.config):
        quantized_by = QuantizedBy(str(named.path), named.config)
        checkpoint = decoded(checkpoint, named.config, str(named.path))
    config = {n: v for n, v in named.config.items() if n not in _NOT_COPIED}
    signature = _signature(named, config)
    text = _text(named, _flat(config) | dict(signature.added), list(checkpoint.tensors), signature)
    program = compile_spec(read_spec(_without_lines(read_document(str(named.path), text))))
    return replace(program, quantized_by=quantized_by)


def named_class(request: Request) -> NamedClass | None:
    """The class that the config with a source names, if Transformers has it. Raises Refusal for a config that cannot be
    read."""
    found = _config(request)
    if found is None:
        return None
    path, config = found
    name = _first_class(config)
    types = model_class.model_types_by_class().get(name, ())
    if not types or config.get("auto_map") or config.get("model_type", types[0]) not in types:
        return None
    return NamedClass(name, config, path)


def _first_class(config: dict[str, Any]) -> str:
    classes = config.get("architectures")
    return next((c for c in classes if isinstance(c, str)), "") if isinstance(classes, list) else ""


def required_class(request: Request) -> NamedClass:
    """The class that the config with a source names. Raises Refusal: `missing-config`, `unknown-class`."""
    if request.reverse:
        hint = "torch.save(load_file('model.safetensors'), 'model.pth') makes a state dict of a folder"
        refuse(NAME, "hf converts into a folder, and has no reverse", "wrong-usage", hint)
    found, source = _config(request), str(request.source[0])
    if found is None:
        hint = "pass the model's config.json with --config; the trainer started from one"
        refuse(source, "there is no config.json with it, which names the class", "missing-config", hint)
    path, config = found
    _check_types(path, config)
    if (named := named_class(request)) is None:
        classes = config.get("architectures")
        name = _first_class(config)
        types = model_class.model_types_by_class().get(name, ())
        if types and not config.get("auto_map"):
            message = f"its model_type is {config['model_type']!r}, and that of {name} is {listed(types)}"
            refuse(str(path), message, "other-architecture", "a config that the class wrote has both")
        if config.get("auto_map"):
            hint = "its auto_map names code of its own; hf is for classes of Transformers"
        elif not classes:
            hint = 'add the class, such as "architectures": ["SomethingForCausalLM"]'
        else:
            hint = nearest(classes[0], model_class.model_types_by_class())
        message = f"its architectures, {classes!r}, name no class of Transformers" if classes else "it names no class"
        refuse(str(path), message, "unknown-class", hint)
    return named


def _check_types(path: Path, config: dict[str, Any]) -> None:
    """Raises Refusal: `wrong-type` for fields of another type than a class's, and for a null where it needs a number."""
    defaults = config_class.config_defaults(str(config.get("model_type")))
    faults = [*config_values.type_faults(config), *config_values.null_faults(config, defaults)]
    if faults:
        raise Refusal(fault.at(str(path)) for fault in faults)


def _config(request: Request) -> tuple[Path, dict[str, Any]] | None:
    if request.config is not None:
        path = request.config / "config.json" if request.config.is_dir() else request.config
        return path, config_file.read_config_file(path)
    for folder in companions(Path(request.source[0])):
        if (path := folder / "config.json").is_file():
            return path, config_file.read_config_file(path)
    return None


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config in the flat dialect, and `rope_parameters` where only they state the kinds of layers."""
    kinds = config_dialects.has_kinds(parameters := config.get("rope_parameters"))
    return config_dialects.read_config(config) | ({"rope_parameters": parameters} if kinds else {})


def _signature(named: NamedClass, config: dict[str, Any]) -> ClassSignature:
    """What the class says of a folder with this config.

    Raises Refusal: `unknown-class`, `unbuildable-target`; `misread-field` where the rotary fields of the config.json that a
    run writes would not mean what the source's do.
    """
    hint = f"write its rotary fields as {named.name} saves them, in a form that Transformers 4 and 5 both have"
    try:
        signature = PendingAnswer(ClassQuestion(named.name, config | _type(named.config))).result()
    except Refusal as refusal:
        if not isinstance(config.get("rope_parameters"), dict):
            raise
        raise Refusal(
            replace(d, hint=hint) if d.kind == "unbuildable-target" else d for d in refusal.diagnostics
        ) from None
    if signature.misread:
        raise Refusal(
            Diagnostic(
                Span(str(named.path)),
                f"{named.name} reads {field} = {_value(meant)} from this config, and {_value(read)} from the one that is written",
                "misread-field",
                hint,
            )
            for field, (meant, read) in signature.misread.items()
        )
    return signature


def _value(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def _type(config: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": config["model_type"]} if "model_type" in config else {}


# ---------------------------------------------------------------------------------------------------------------------
# The spec


def _text(named: NamedClass, config: dict[str, Any], names: list[str], signature: ClassSignature) -> str:
    """The spec as JSON, which is YAML."""
    bare = _without_prefix(names, signature)
    moved = {tensor.name: tensor for tensor in signature.memory if tensor.name in bare}
    forms = [(t.name, t.targets, t.steps) for t in moved.values() if t.name not in signature.shapes or t.steps]
    rename = {source: targets[0] for source, targets in _merged((s, t) for s, t, steps in forms if not steps)}
    kinds = dict.fromkeys(steps for *_, steps in forms if steps)
    fused = [(s, t, steps) for steps in kinds for s, t in _merged((s, t) for s, t, other in forms if other == steps)]
    transform = [
        {"name": f"fused_{n}", "from": source, "to": list(targets), "steps": [dict(step) for step in steps]}
        for n, (source, targets, steps) in enumerate(fused)
    ]
    aliases = {alias: owner for alias, owner in signature.ties.items() if alias in bare}
    rename |= {alias: owner for alias, owner in aliases.items() if owner not in bare}
    unsaved = [re.compile(text) for text in signature.unsaved]
    held = signature.shapes.keys() | moved.keys() | signature.ties.keys()
    dropped = [name for name in bare if name not in held and any(p.search(name) for p in unsaved)]
    unread = {name: "the weights are converted to dense ones" for name in FIELDS if name in named.config}
    spec = {
        "spec": 1,
        "name": NAME,
        "summary": f"{SUMMARY}, {named.name}",
        "source": {"weights": "*", "unread": unread} if unread else {"weights": "*"},
        "target": {"model": named.name},
        "facts": _probe(bare, signature),
        "config": {"set": dict(config)},
        "keep": "all",
        "rename": rename,
        "transform": transform,
        "tie": {alias: owner for alias, owner in aliases.items() if owner in bare},
        "ignore": dict.fromkeys(dropped, "the class computes it and does not save it"),
    }
    return json.dumps({key: value for key, value in spec.items() if value not in ({}, [])}, indent=1)


def _without_lines(node: Node) -> Node:
    """The document without the lines of a text that nobody can look at; messages name the config.json it is made from."""
    span = Span(node.span.path)
    match node:
        case Scalar():
            return replace(node, span=span)
        case Sequence():
            return Sequence(tuple(map(_without_lines, node.items)), span)
        case Mapping():
            entries = ((replace(key, span=span), _without_lines(value)) for key, value in node.entries)
            return Mapping(tuple(entries), span)


def _probe(names: frozenset[str], signature: ClassSignature) -> dict[str, str]:
    """A fact that measures a tensor of the source, so that opening the source removes a prefix before this name."""
    name = next((name for name, shape in signature.shapes.items() if shape and name in names), None)
    return {} if name is None else {"a_size": f'dim("{name}", 0)'}


def _without_prefix(names: list[str], signature: ClassSignature) -> frozenset[str]:
    """The names without the prefix that opening the source removes, as it will see that facts ask for the rest."""
    known = signature.shapes.keys() | {tensor.name for tensor in signature.memory}
    for _ in range(DEPTH + 1):
        if any(name in known for name in names):
            break
        first = names[0].partition(".")[0] + "."
        if not all(name.startswith(first) for name in names):
            break
        names = [name.removeprefix(first) for name in names]
    return frozenset(names)


def _merged(forms: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names that differ in their numbers only as one pattern that lists them: `layers.{a:0|1}.up` for two layers."""
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[str, ...]]] = {}
    single: list[tuple[str, tuple[str, ...]]] = []
    for source, targets in forms:
        numbers = tuple(NUMBER.findall(source))
        if len(numbers) != 1 or any(NUMBER.findall(target) != list(numbers) for target in targets):
            single.append((source, targets))
            continue
        key = NUMBER.sub("{}", source), tuple(NUMBER.sub("{}", target) for target in targets)
        groups.setdefault(key, []).append(numbers)
    yield from single
    for (source, targets), found in groups.items():
        hole = "{a:" + "|".join(numbers[0] for numbers in found) + "}"
        yield source.replace("{}", hole), tuple(target.replace("{}", "{a}") for target in targets)

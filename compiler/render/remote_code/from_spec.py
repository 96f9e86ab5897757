"""The code of a custom architecture that a spec names: rendered from blocks, or the user's own files.

Faults are reported at their place in the spec. Own files are imported in a separate process: see `target.model_file`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiler.diagnostics import Report, Span, located
from compiler.language import document
from compiler.language.document import Node
from compiler.language.spec import Spec
from compiler.render.python_source import ExprPrinter, literal
from compiler.render.remote_code.render import CustomModel, auto_map, faults, render_custom
from compiler.target import model_file, signature_cache
from compiler.target.signature_cache import ClassQuestion
from compiler.templating import banner


@dataclass(frozen=True)
class RemoteCode:
    """What is stored beside the weights. `files`: file name -> text; `auto_map`: auto class -> `module.Class`; `fields`:
    the names of the config fields, without those that every config has."""

    files: Mapping[str, str]
    model_type: str
    auto_map: Mapping[str, str]
    fields: frozenset[str]


def remote_code(spec: Spec) -> RemoteCode:
    """The code of a path B spec. Raises Refusal with every fault at its place in the spec."""
    if spec.target.code is None:
        model = custom_model(spec)
        return RemoteCode(render_custom(model), model.module, auto_map(model), frozenset(spec.fields))
    files, module, config_class = _own_files(spec)
    with located(spec.target.code.span):
        found = signature_cache.code_classes(files, module, spec.target.class_name, config_class)
    return RemoteCode(files, found.model_type, found.auto_map, frozenset(found.fields))


def class_question(spec: Spec, config: Mapping[str, Any]) -> ClassQuestion:
    """What to ask the target class of a path B spec about a folder with this config.json. Raises Refusal."""
    name = spec.target.class_name
    if spec.target.code is None:
        model = custom_model(spec)
        return ClassQuestion(name, config, render_custom(model), f"model_{model.module}")
    files, module, _ = _own_files(spec)
    return ClassQuestion(name, config, files, module, own=True)


def _own_files(spec: Spec) -> tuple[dict[str, str], str, str | None]:
    """File name -> text of the user's code, the module of the model class, and the config class that the spec names."""
    code, named = spec.target.code, spec.target.config_class
    assert code is not None
    report = Report()
    if spec.fields:
        place = _place(spec.root, ("config", "fields"))
        report.add(
            place, "'fields' belongs to rendered code", "unknown-key", "fill the fields with copy, derive and set"
        )
    report.settle()
    path = spec.code_file
    with located(code.span):
        files = model_file.read_files(path)
    if (taken := f"convert_{spec.name.value}.py") in files:
        report.add(code.span, f"{taken} is the name of the converter", "bad-name", "rename the file")
    report.settle()
    return files, path.stem, named.value if named else None


def custom_model(spec: Spec) -> CustomModel:
    """The architecture of a spec with blocks. Raises Refusal with every fault at its place in the spec."""
    target = spec.target
    assert target.remote_code is not None
    assert target.config_class is not None
    assert target.model_class is not None
    assert target.blocks is not None
    printer = ExprPrinter("")
    blocks: Any = document.plain(target.blocks)
    model = CustomModel(
        module=target.remote_code.value,
        config_class=target.config_class.value,
        model_class=target.model_class.value,
        blocks=blocks,
        fields={n: printer(f.expr) if f.expr else literal(f.constant) for n, f in spec.fields.items()},
        summary=spec.summary,
        banner=banner(spec.name.value),
    )
    report = Report()
    for fault in faults(model):
        report.add(_place(spec.root, fault.path), fault.message, fault.kind, fault.hint)
    report.settle()
    return model


def _place(node: Node, path: tuple[str, ...]) -> Span:
    """The span of the deepest key of `path` that the spec has."""
    span = node.span
    for step in path:
        if not isinstance(node, document.Mapping) or (key := node.key(step)) is None:
            break
        span, node = key.span, node.get(step) or node
    return span

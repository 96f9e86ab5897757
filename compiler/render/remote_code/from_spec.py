"""The custom architecture of a spec: the `CustomModel` that the templates render.

Faults of the architecture are reported at their place in the spec.
"""

from __future__ import annotations

from typing import Any

from compiler.diagnostics import Report, Span
from compiler.language import document
from compiler.language.document import Node
from compiler.language.spec import Spec
from compiler.render.python_source import ExprPrinter, literal
from compiler.render.remote_code.render import CustomModel, auto_map, faults, render_custom
from compiler.templating import banner


def custom_model(spec: Spec) -> CustomModel:
    """The architecture of a path B spec. Raises Refusal with every fault at its place in the spec."""
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


def code(spec: Spec) -> dict[str, str]:
    """The rendered modules, `{file name: text}`. Raises Refusal."""
    return render_custom(custom_model(spec))


def auto_map_of(spec: Spec) -> dict[str, str]:
    """The `auto_map` of config.json. Raises Refusal."""
    return auto_map(custom_model(spec))


def _place(node: Node, path: tuple[str, ...]) -> Span:
    """The span of the deepest key of `path` that the spec has."""
    span = node.span
    for step in path:
        if not isinstance(node, document.Mapping) or (key := node.key(step)) is None:
            break
        span, node = key.span, node.get(step) or node
    return span

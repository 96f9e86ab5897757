"""The last check of a conversion: what was planned, against the target class built from the config.json that is written.

The compile-time proof holds at the sizes of the examples, the rules at those of the checkpoint. Neither sees a tensor
whose shape contradicts the config, so the class itself is asked, at the run's own config: names, shapes and ties must be
what `from_pretrained` will look for. The class is built on the meta device in a process of its own while the weights are
copied, and its answer is cached (`target.ask_class`, `target.signature_cache`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from compiler.diagnostics import Diagnostic, Refusal, Span, listed, nearest
from compiler.plan.plan import Plan
from compiler.program.program import Program
from compiler.target.ask_class import PendingAnswer
from compiler.target.class_signature import ClassSignature
from compiler.target.signature_cache import ClassQuestion

Shape = tuple[int, ...]
_SHOWN = 8  # problems of one kind


class ClassCheck:
    """Context manager: the class is asked from the start, `settle` waits for its answer and compares it with the plan."""

    def __init__(self, plan: Plan, config: Mapping[str, Any] | None = None) -> None:
        """`config`: of the folder that a reverse conversion reads; by default what the plan writes."""
        self.plan = plan
        self.config = plan.config if config is None else config
        self.pending = PendingAnswer(class_question(plan.program, self.config))

    def __enter__(self) -> ClassCheck:
        return self

    def __exit__(self, *_: object) -> None:
        self.pending.stop()

    def settle(self, written: Mapping[str, Shape] | None = None) -> None:
        """Raise a Refusal with every tensor that is missing, unknown to the class, or of another shape.

        `written`: the names and shapes in the folder; by default the targets of the plan.
        """
        signature = self.pending.result()
        tensors = {t.name: tuple(t.shape) for t in self.plan.targets} if written is None else dict(written)
        if found := list(_differences(self.plan, self.config, tensors, signature)):
            raise Refusal(found)


def class_question(program: Program, config: Mapping[str, Any]) -> ClassQuestion:
    """What to ask the target class of a program whose folder has these config fields. Raises Refusal: `unknown-class`."""
    from compiler.diagnostics import located
    from compiler.render.remote_code import from_spec
    from compiler.target import config_dialects, model_class

    spec = program.spec
    if spec.target.model is not None:
        name = spec.target.model.value
        with located(spec.target.model.span):
            kind = model_class.model_type(name)
        written = config_dialects.config_json(config, model_class=name, model_type=kind, dtype="float32")
        return ClassQuestion(name, json.loads(config_dialects.json_text(written)))
    model = from_spec.custom_model(spec)
    written = config_dialects.config_json(
        config, model_class=model.model_class, model_type=model.module, dtype="float32"
    )
    return ClassQuestion(
        model.model_class,
        json.loads(config_dialects.json_text(written)),
        from_spec.code(spec),
        f"model_{model.module}",
    )


def _differences(
    plan: Plan, config: Mapping[str, Any], written: Mapping[str, Shape], signature: ClassSignature
) -> Iterator[Diagnostic]:
    wanted = {name: tuple(shape) for name, shape in signature.shapes.items()}
    name_of_class = plan.program.spec.target.class_name
    places = {target.name: group.rule.span for group in plan.groups for target in group.target_list}
    spec = Span(plan.program.spec.path)
    if missing := sorted(wanted.keys() - written.keys()):
        yield Diagnostic(
            spec,
            f"{name_of_class} with this config needs {listed(missing)}, which the conversion does not write",
            "missing-tensor",
            _hint_of_missing(missing[0], written, plan),
        )
    for name in sorted(written.keys() - wanted.keys())[:_SHOWN]:
        owner = signature.ties.get(name)
        tied = f"{name_of_class} with this config shares {name} with {owner} and would ignore the one that is written"
        unknown = f"{name_of_class} with this config has no tensor {name}"
        hint = "tie_word_embeddings is true in the config" if owner else nearest(name, wanted.keys() - written.keys())
        yield Diagnostic(places.get(name, spec), tied if owner else unknown, "unknown-target", hint)
    apart = [name for name in sorted(wanted.keys() & written.keys()) if wanted[name] != written[name]]
    for name in apart[:_SHOWN]:
        message = (
            f"{name} comes out as {list(written[name])}, {name_of_class} with this config needs {list(wanted[name])}"
        )
        more = f" (and {len(apart) - _SHOWN} more tensors)" if len(apart) > _SHOWN and name == apart[0] else ""
        yield Diagnostic(
            places.get(name, spec), message + more, "wrong-shape", _fields(config, written[name], wanted[name])
        )


def _hint_of_missing(name: str, written: Mapping[str, Shape], plan: Plan) -> str:
    if any(tie.alias.match(name) is not None for tie in plan.program.ties):
        return "the class shares it only where the config has tie_word_embeddings: true"
    return nearest(name, written) or "the checkpoint is incomplete, or the config states more layers than it has"


def _fields(config: Mapping[str, Any], written: Shape, wanted: Shape) -> str:
    """The config fields that the class takes the differing axis from, found by their values."""
    axes = [(a, b) for a, b in zip(written, wanted, strict=False) if a != b] if len(written) == len(wanted) else []
    numbers = {n: v for n, v in config.items() if isinstance(v, int) and not isinstance(v, bool) and v > 1}
    for _, need in axes:
        if single := [name for name, value in numbers.items() if value == need]:
            return f"{need} is {' or '.join(single)} in config.json; compare it with the checkpoint"
        for one, other in combinations(numbers, 2):
            if numbers[one] * numbers[other] == need:
                return f"{need} is {one} * {other} in config.json; compare them with the checkpoint"
    return "compare the fields of config.json with the checkpoint"

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

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.diagnostics import Diagnostic, Refusal, Span, listed, nearest
from compiler.plan.plan import Group, Plan
from compiler.program.program import Program
from compiler.target.ask_class import PendingAnswer
from compiler.target.class_signature import ClassSignature
from compiler.target.signature_cache import ClassQuestion

Shape = tuple[int, ...]
_SHOWN = 8  # problems of one kind


class ClassCheck:
    """Context manager: the class is asked from the start; `settle` waits for the answer and compares."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint, folder_config: Mapping[str, Any] | None = None) -> None:
        """`folder_config`: config.json of the folder that a reverse conversion reads, whose tensors are then compared
        instead of those that the plan writes. Raises Refusal: `unknown-class`."""
        self.plan = plan
        if plan.reverse:
            self.config = dict(folder_config or {})
            self.tensors = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
        else:
            self.config = config_written(plan.program, plan.config)
            self.tensors = {target.name: tuple(target.shape) for target in plan.targets}
        self.pending = PendingAnswer(class_question(plan.program, self.config))

    def __enter__(self) -> ClassCheck:
        return self

    def __exit__(self, *_: object) -> None:
        self.pending.stop()

    def settle(self) -> list[tuple[str, str]]:
        """Raise a Refusal with every tensor that is missing, unknown to the class, or of another shape. Return the pairs
        (alias, owner) that the class shares, that the folder of a reverse conversion has both of, and that the plan does
        not compare."""
        signature = self.pending.result()
        if found := list(_differences(self.plan, self.config, self.tensors, signature)):
            raise Refusal(found)
        both = ((alias, owner) for alias, owner in signature.ties.items() if {alias, owner} <= self.tensors.keys())
        return [pair for pair in both if self.plan.reverse and pair not in self.plan.ties]


def config_written(program: Program, fields: Mapping[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """The config.json that a folder with these fields of the spec's `config` gets. Raises Refusal: `unknown-class`."""
    from compiler.render.remote_code import from_spec
    from compiler.target import config_dialects, model_class

    target = program.spec.target
    if target.model is not None:
        kind = model_class.model_type(target.model.value)
    else:
        kind = from_spec.remote_code(program.spec).model_type
    written = config_dialects.config_json(fields, model_class=target.class_name, model_type=kind, dtype=dtype)
    config: dict[str, Any] = json.loads(config_dialects.json_text(written))
    return config


def class_question(program: Program, config: Mapping[str, Any]) -> ClassQuestion:
    """What to ask the target class of a program about a folder with this config.json."""
    from compiler.render.remote_code import from_spec

    target = program.spec.target
    config = {name: value for name, value in config.items() if name not in ("auto_map", "quantization_config")}
    if target.model is not None:
        return ClassQuestion(target.model.value, config)
    return from_spec.class_question(program.spec, config)


def _differences(
    plan: Plan, config: Mapping[str, Any], tensors: Mapping[str, Shape], signature: ClassSignature
) -> Iterator[Diagnostic]:
    wanted = {name: tuple(shape) for name, shape in signature.shapes.items()}
    of_class = f"{plan.program.spec.target.class_name} with this config"
    places = {name: group.rule.span for group in plan.groups for name in _names(plan, group)}
    spec = Span(plan.program.spec.path)
    where = "the folder lacks" if plan.reverse else "the conversion does not write"
    if missing := sorted(wanted.keys() - tensors.keys()):
        hint = _hint_of_missing(missing[0], tensors, plan)
        yield Diagnostic(spec, f"{of_class} needs {listed(missing)}, which {where}", "missing-tensor", hint)
    for name in sorted(tensors.keys() - wanted.keys())[:_SHOWN]:
        if owner := signature.ties.get(name):
            if plan.reverse:  # an older release wrote both; they are compared
                continue
            message = f"{of_class} shares {name} with {owner} and would ignore the one that is written"
            hint = "the config has tie_word_embeddings: true, which is its default in some classes"
        else:
            message, hint = f"{of_class} has no tensor {name}", nearest(name, wanted.keys() - tensors.keys())
        yield Diagnostic(places.get(name, spec), message, "unknown-target", hint)
    apart = [name for name in sorted(wanted.keys() & tensors.keys()) if wanted[name] != tensors[name]]
    for name in apart[:_SHOWN]:
        message = f"{name} is {list(tensors[name])}, {of_class} needs {list(wanted[name])}"
        more = f" ({len(apart) - _SHOWN} more tensors differ)" if len(apart) > _SHOWN and name == apart[0] else ""
        yield Diagnostic(
            places.get(name, spec), message + more, "wrong-shape", _fields(config, tensors[name], wanted[name])
        )


def _names(plan: Plan, group: Group) -> list[str]:
    """The names of a group on the side of the target class."""
    return list(group.source_names) if plan.reverse else [target.name for target in group.target_list]


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

"""The files beside the weights of a folder that `--reverse` writes: the source's config, its tokenizer, the manifest.

Takes a reversed Plan. The fields of the config are read from it: arguments and facts by their names, and what
`source.reverse` of the spec adds or omits. What the source's config has no place for is in the manifest, from which a
conversion of the folder reads it. Raises Refusal: `missing-argument` for an argument that neither config.json nor the
manifest of the converted folder has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.diagnostics import Refusal, Report, listed
from compiler.language import document
from compiler.model_folder import card
from compiler.model_folder.sidecar_files import SidecarFiles
from compiler.output import safetensors_layout
from compiler.output.earlier_run import INDEX, MANIFEST
from compiler.output.pth_layout import Wrapping
from compiler.output.safetensors_layout import OutFile
from compiler.plan.plan import Plan
from compiler.program.environment import Environment, Given, NamedShapes, Origin, reads_data
from compiler.program.program import Program
from compiler.settings import config_inverse

# Of a folder of Transformers: many trainers keep them beside weights of their own, and a conversion reads them.
HUB = "config.json"
CONFIGS = (HUB, "generation_config.json")


def weights_name(program: Program) -> str:
    """The name of the one weights file in a folder of the source, or of the first of several parts."""
    spec = program.spec
    if spec.layout.file:
        return spec.layout.path(spec.layout.file)
    stem = "model" if spec.weights.startswith("*") else "00"
    return spec.layout.path(spec.weights.replace("*", stem)) if spec.weights else "model.pth"


def environment(plan: Plan) -> Environment:
    """The arguments and facts of the source that a reversed plan makes, from its arguments and tensors alone.

    A fact that comes out differently than in the plan, where config.json gave it, decides the arguments that it depends
    on. Raises Refusal: `missing-argument` for arguments that nothing decides.
    """
    program, spec = plan.program, plan.program.spec
    arguments = {name: value for name, value in plan.values.items() if name in spec.arguments}
    facts = {name: value for name, value in plan.values.items() if name in spec.facts}
    env = _environment(plan, arguments, facts)
    if differing := {name: value for name, value in facts.items() if env[name] != value}:
        given = {name: value for name, value in arguments.items() if value != spec.arguments[name].default}
        solved = config_inverse.arguments_of_facts(program, differing, given)
        env = _environment(plan, {**arguments, **solved}, facts)
        report = Report()
        for name, value in differing.items():
            if env[name] != value:
                message = f"{name} is {value!r} here, and {env[name]!r} with the arguments that are known"
                hint = f"give what it depends on with --set: {listed(sorted(spec.facts[name].names))}"
                report.add(spec.facts[name].span, message, "missing-argument", hint)
        report.settle()
    return env


def _environment(plan: Plan, arguments: Mapping[str, Any], facts: Mapping[str, Any]) -> Environment:
    """With a value for every argument. Facts that compare the data of tensors have that of the plan."""
    unmeasured = reads_data(plan.program)
    values = {**arguments, **{name: value for name, value in facts.items() if name in unmeasured}}
    given = {name: Given(value, "the conversion", Origin.CONFIG_FILE) for name, value in values.items()}
    shapes = NamedShapes({target.name: target for target in plan.targets})
    env = Environment(plan.program, shapes, given, trusted=unmeasured)
    report = Report()
    for name in plan.program.spec.arguments:
        try:
            env[name]
        except Refusal as refusal:  # neither config.json nor a manifest has it
            hint = f"give it with --set {name}=VALUE"
            report.absorb(Refusal(replace(d, hint=hint) if d.subject == name else d for d in refusal.diagnostics))
    report.settle()
    return env


def fields(plan: Plan) -> dict[str, Any]:
    """The fields of the source's config, in the order of the spec. Raises Refusal."""
    spec, env = plan.program.spec, environment(plan)
    layout = spec.layout
    omitted = {name.value for name in layout.omit}
    found: dict[str, Any] = {}
    if not layout.omit_all:
        for name, argument in spec.arguments.items():
            value = env[name]
            if value is not None or argument.required or argument.default is not None:
                found[name] = value
        for carried in dict.fromkeys(field.carried for field in spec.config):
            if carried is not None and carried in spec.facts:
                found[carried] = env[carried]
        found |= {n: field.values[0] for n, field in spec.fixed.items() if None not in field.values}
    found = {name: value for name, value in found.items() if name not in omitted}
    for field in layout.fields:
        value = env.evaluate(field.expr) if field.expr else field.constant
        found.pop(field.name, None)
        if value is not None:
            found[field.name] = value
    return found


def constants(plan: Plan) -> dict[str, list[float]]:
    """Name -> numbers of each vector that the file has besides the tensors. Raises Refusal."""
    env = environment(plan)
    values = {field.name: env.evaluate(field.expr) for field in plan.program.spec.layout.constants if field.expr}
    return {name: [float(number) for number in value] for name, value in values.items() if value is not None}


def wrapping(plan: Plan) -> Wrapping:
    """What surrounds the tensors in a torch file of the source. Raises Refusal."""
    layout = plan.program.spec.layout
    env = environment(plan)
    objects = {field.name: env.evaluate(field.expr) for field in layout.objects if field.expr}
    objects |= {layout.arguments: fields(plan)} if layout.arguments else {}
    return Wrapping(layout.state_dict, objects, (layout.arguments,) if layout.namespace else (), layout.dictionaries)


def config_text(plan: Plan) -> dict[str, str]:
    """File name -> text of the source's config; empty if the spec names none. Raises Refusal."""
    spec = plan.program.spec
    if not spec.source_config:
        return {}
    content = fields(plan)
    if spec.source_config == HUB and spec.model_types:
        content = {"model_type": spec.model_types[0], **content}
    if spec.layout.holder:
        content = {spec.layout.holder: content}
    if spec.source_config.endswith((".yaml", ".yml")):
        return {spec.source_config: document.as_yaml(content)}
    return {spec.source_config: json.dumps(content, indent=2, ensure_ascii=False, default=dict) + "\n"}


def collect(
    plan: Plan,
    checkpoint: Checkpoint,
    beside: SidecarFiles,
    files: Sequence[OutFile],
    weights: Mapping[str, int],
    checked: bool,
) -> SidecarFiles:
    """Everything but the weights of a source folder. `beside`: the configs and the tokenizer of the Transformers folder;
    `files`: those of the weights; `weights`: the size of each weights file, by name. Raises Refusal, OSError."""
    env = environment(plan)  # every argument has a value, also where no config file has a place for it
    plan = replace(plan, values={**plan.values, **{name: env[name] for name in plan.program.spec.arguments}})
    texts = {**beside.texts, **config_text(plan)}
    layout = plan.program.spec.layout
    if any(name == layout.common or name.startswith(f"{layout.folder}/") for name in weights):
        texts |= dict(layout.texts)
    if safetensors_layout.is_divided(files):
        texts[INDEX] = safetensors_layout.index_json(files, plan.targets)
    sidecars = SidecarFiles(texts, beside.copies, beside.reads)
    manifest = card.manifest(plan, checkpoint, {**weights, **sidecars.sizes()}, checked=checked)
    return SidecarFiles({**texts, MANIFEST: manifest}, beside.copies, beside.reads)

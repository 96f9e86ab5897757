"""`compile draft SOURCE --target CLASS`: proposes a spec for a checkpoint that no spec fits."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from compiler.cli.options import Parser, notes, print_json

MOST_PROBLEMS = 5  # that are printed where a draft does not bind


def draft_parser() -> Parser:
    parser = Parser(
        "draft", "Propose a spec for an unknown checkpoint. Open questions are listed in it under `undecided`."
    )
    parser.add_source()
    parser.add_argument("--target", required=True, metavar="CLASS", help="a class of Transformers")
    parser.add_settings()
    parser.add_argument(
        "--like",
        type=Path,
        metavar="DIR",
        help="the same model, already converted: answers questions by comparing bytes",
    )
    parser.add_argument(
        "--reference",
        metavar="MODULE:CLASS",
        help="the source's own model, importable from here: answers questions by comparing logits",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="the spec to write (default: stdout)")
    parser.add_json()
    return parser


def draft(options: argparse.Namespace) -> int:
    from compiler.checkpoints.checkpoint import open_checkpoint
    from compiler.diagnostics import Refusal, refuse
    from compiler.draft.decide_by_example import decide_by_example, plan_of
    from compiler.draft.proposal import propose
    from compiler.language.parser import load_spec
    from compiler.resources import schema_path

    if options.out is not None and (options.out.exists() or options.out.suffix != ".yaml"):
        what = "the file exists" if options.out.exists() else "a spec is a file called NAME.yaml"
        refuse(
            str(options.out), what, "output-exists" if options.out.exists() else "wrong-usage", "choose another name"
        )
    if options.reference and options.reference.count(":") != 1:
        refuse("--reference", f"{options.reference!r} is not of the form module:Class", "wrong-usage")
    checkpoint = open_checkpoint(options.source[0] if len(options.source) == 1 else options.source, options.weights)
    name = options.out.stem if options.out is not None else "draft"
    shapes = {n: (tuple(t.shape), t.dtype) for n, t in checkpoint.tensors.items()}
    weights = f"*{options.source[0].suffix}"
    proposal = propose(name, shapes, options.target, _given(options, checkpoint.objects), weights)
    if options.like is not None:
        proposal = decide_by_example(proposal, checkpoint, open_checkpoint(options.like))
    kept, say = notes(options)
    if options.reference:
        from compiler.checkpoints.config_file import parse_assignments
        from compiler.draft.decide_by_model import decide_by_model
        from compiler.jobs.prepare import Request
        from compiler.verify.compare import SourceModel

        request = Request(options.source, options.config, parse_assignments(options.set), weights=options.weights)
        proposal, outcome = decide_by_model(proposal, checkpoint, request, SourceModel(entry=options.reference))
        say(outcome)
    schema = os.path.relpath(schema_path(), options.out.parent) if options.out is not None else ""
    text = proposal.text(schema=schema)
    load_spec(f"{name}.yaml", text)
    try:
        plan_of(proposal, checkpoint)
    except Refusal as refusal:
        for problem in refusal.diagnostics[:MOST_PROBLEMS]:
            say(f"the draft does not bind to this checkpoint yet: {problem.message}")
    if options.out is not None:
        try:
            options.out.write_text(text, encoding="utf-8")
        except OSError as error:
            refuse(str(options.out), f"cannot be written: {error.strerror}", "output-unwritable")
    if options.json:
        print_json({"spec": text, "undecided": proposal.questions, "notes": kept})
    elif options.out is None:
        print(text, end="")
    else:
        print(f"wrote {options.out}")
    asked = len(proposal.questions)
    if asked and not options.json:
        say(f"{asked} question{'s' * (asked != 1)} to decide, under 'undecided'")
    return 0


def _given(options: argparse.Namespace, objects: Any) -> dict[str, Any]:
    """Fields of the source's config: from the checkpoint itself, from a config file, from `--set`. Raises Refusal."""
    from compiler.checkpoints import config_file
    from compiler.draft.sizes import SETTING_FIELDS, SIZE_FIELDS
    from compiler.plan import arguments
    from compiler.target import config_dialects, model_class

    found: dict[str, Any] = {}
    for key in reversed(arguments.OBJECTS):
        if isinstance(objects.get(key), dict):
            found |= config_dialects.read_config(objects[key])
    beside = (config_file.beside(options.source[0], name) for name in ("config.json", "params.json"))
    path = options.config or next(filter(None, beside), None)
    if path is not None:
        known = {*model_class.config_fields(options.target)} - arguments.BAGGAGE
        known |= {name for names in (*SIZE_FIELDS.values(), *SETTING_FIELDS) for name in names}
        whole = config_file.read_config_file(path)
        found |= config_dialects.read_config(whole | arguments.model_part(whole, known))
    found |= config_file.parse_assignments(options.set)
    return {name: value for name, value in found.items() if name not in arguments.BAGGAGE - {"dtype"}}

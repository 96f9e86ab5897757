"""`compile draft SOURCE --target CLASS`: write a first version of a spec for a checkpoint that no spec fits."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from compiler import packages
from compiler.cli.options import Parser, notes_for, print_json, request
from compiler.console import usage
from compiler.console.terminal import painter
from compiler.plan.notes import Remark

REFERENCE = "--reference FILE.py:FUNCTION, the source's own model, decides how fused and rotary tensors are stored"
MOST_PROBLEMS = 5  # that are printed if a draft does not bind


def draft_parser() -> Parser:
    parser = Parser(
        "draft",
        "Write a first version of a spec for an unknown layout. Open decisions are listed in it under `undecided`.",
    )
    parser.add_source()
    parser.add_argument("--target", required=True, metavar="CLASS", help="a class of Transformers")
    parser.add_settings()
    parser.add_argument(
        "--like",
        type=Path,
        metavar="DIR",
        help="the same model, converted by other code: decides open questions by comparing bytes",
    )
    parser.add_argument(
        "--reference",
        metavar="FILE.py:FUNCTION",
        help="the source's own model: a function that is called with one dict, the source's config, and returns a torch "
        "module whose state_dict has the checkpoint's names, or MODULE:CLASS. It decides open questions by comparing "
        "logits. This runs that code.",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="the spec to write (default: stdout)")
    parser.add_json()
    return parser


def draft(options: argparse.Namespace) -> int:
    from compiler.checkpoints.checkpoint import open_checkpoint
    from compiler.diagnostics import Refusal, refuse
    from compiler.draft.decide_by_example import decide_by_example, plan_of
    from compiler.draft.proposal import propose
    from compiler.draft.sizes import SETTING_FIELDS, SIZE_FIELDS
    from compiler.language.parser import load_spec
    from compiler.resources import schema_path
    from compiler.settings.arguments import gather_without_spec
    from compiler.target import model_class

    if options.out is not None and (options.out.exists() or options.out.suffix != ".yaml"):
        what = "the file exists" if options.out.exists() else "a spec's file name must be NAME.yaml"
        kind = "output-exists" if options.out.exists() else "wrong-usage"
        name = "another name" if options.out.exists() else options.out.with_suffix(".yaml")
        refuse(str(options.out), what, kind, f"choose {name}")
    if options.reference and options.reference.count(":") != 1:
        refuse("--reference", f"{options.reference!r} is neither FILE.py:FUNCTION nor MODULE:CLASS", "wrong-usage")
    packages.need("mapspec draft")
    named = dict.fromkeys((options.config, options.like), "unreadable-file")
    usage.check_places("mapspec draft", None, options.source, named)
    asked = request(options)
    checkpoint = open_checkpoint(asked.source[0] if len(asked.source) == 1 else list(asked.source), asked.weights)
    name = options.out.stem if options.out is not None else "draft"
    shapes = {n: (tuple(t.shape), t.dtype) for n, t in checkpoint.tensors.items()}
    known = {*model_class.config_fields(options.target)}
    known |= {name for names in (*SIZE_FIELDS.values(), *SETTING_FIELDS) for name in names}
    values = gather_without_spec(asked.source[0], checkpoint.objects, asked.config, asked.assigned, known)
    proposal = propose(name, shapes, options.target, values, f"*{asked.source[0].suffix}")
    if options.like is not None:
        proposal = decide_by_example(proposal, checkpoint, open_checkpoint(options.like))
    notes = notes_for(options)
    if options.reference:
        from compiler.draft.decide_by_model import decide_by_model
        from compiler.verify.compare import SourceModel

        proposal, outcome = decide_by_model(proposal, checkpoint, asked, SourceModel(entry=options.reference))
        notes(Remark(outcome))
    schema = os.path.relpath(schema_path(), options.out.parent) if options.out is not None else ""
    text = proposal.text(schema=schema)
    load_spec(f"{name}.yaml", text)
    try:
        plan_of(proposal, checkpoint)
    except Refusal as refusal:
        for problem in refusal.diagnostics[:MOST_PROBLEMS]:
            notes(Remark(f"the draft does not bind to this checkpoint yet: {problem.message}"))
    if options.out is not None:
        try:
            options.out.write_text(text, encoding="utf-8")
        except OSError as error:
            refuse(str(options.out), f"cannot be written: {error.strerror}", "output-unwritable")
    if options.json:
        print_json({"spec": text, "undecided": proposal.questions, "notes": notes.lines()})
    elif options.out is None:
        print(text, end="")
    elif options.quiet < 2:
        print(f"wrote {options.out}")
    count = len(proposal.questions)
    if count and not options.json:
        notes(Remark(f"{count} question{'s' * (count != 1)} to decide, under 'undecided'"))
        if not options.reference and any(guess.question for guess in proposal.draft.guesses):
            notes(Remark(REFERENCE))
    if options.out is not None and not options.json and not options.quiet:
        first = "decide them in the file, then " if count else ""
        print(painter(sys.stdout)("command", f"next: {first}mapspec {shlex.quote(str(options.out))}"))
    return 0

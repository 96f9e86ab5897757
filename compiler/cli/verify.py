"""`compile verify SPEC SOURCE OUT`: compare a converted folder with its source."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.cli.options import Notes, Parser, print_json, request
from compiler.diagnostics import Diagnostic, Refusal, Span, listed, refuse

if TYPE_CHECKING:
    from compiler.jobs.request import Request
    from compiler.program.program import Program
    from compiler.verify.compare import SourceModel, Verdict

NOT_CHECKED = "logits NOT checked; pass --source-spec SPEC or --source-model MODULE:CLASS to compare them"


def verify_parser() -> Parser:
    parser = Parser("verify", "Compare a converted folder with the checkpoint that it was made from.")
    parser.add_spec()
    parser.add_source()
    parser.add_argument("out", type=Path, metavar="OUT", help="the converted folder")
    parser.add_settings()
    add_source_model(parser)
    parser.add_json()
    parser.set_defaults(checksums=False)
    return parser


def add_source_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the source's model; `run --verify` has them too."""
    parser.add_argument(
        "--source-spec",
        metavar="SPEC",
        help="a spec that renders the source's model code, and whose model is run",
    )
    parser.add_argument(
        "--source-model", metavar="MODULE:CLASS", help="the source's own model class, importable from here"
    )
    parser.add_argument(
        "--source-config", type=Path, metavar="FILE", help="the config of --source-model, if it differs from --config"
    )
    parser.add_argument("--length", type=int, default=64, metavar="N", help="number of tokens to run (default: 64)")


def verify(options: argparse.Namespace) -> int:
    from compiler.jobs.detect import named_program

    notes, asked = Notes(silent=options.json), request(options)
    result = verified(options, named_program(options.spec, asked, notes), asked, options.out)
    print_json(result | {"notes": notes.lines()}) if options.json else print(f"{options.out}: {result['text']}")
    return 0


def verified(options: argparse.Namespace, program: Program, asked: Request, out: Path) -> dict[str, Any]:
    """The result as numbers and a text for people. Raises Refusal if the folder differs from its source."""
    model = source_model_of(options.source_spec, options.source_model, options.source_config, options.length)
    if model is None:
        return _without_model(program, asked, out)
    from compiler.verify.compare import verify as compare

    verdict = compare(program, asked, out, model)
    if not verdict.agrees:
        raise Refusal(faults(verdict, str(model), out))
    text = (
        f"logits agree with {model} on {verdict.tokens} tokens in float32: they differ by at most "
        f"{verdict.difference:.2g} (the largest is {verdict.scale:.3g}), KL {verdict.divergence:.1e} nats, "
        f"the most likely token is the same in {verdict.argmax:.1%}"
    )
    return {"text": text, "proof": "logits", "model": str(model)} | numbers(verdict)


def numbers(verdict: Verdict) -> dict[str, Any]:
    """The numbers of a verdict."""
    names = ("difference", "scale", "divergence", "argmax", "tokens")
    return {name: getattr(verdict, name) for name in names}


def source_model_of(spec: str | None, entry: str | None, config: Path | None, length: int) -> SourceModel | None:
    """The source's model: that of a spec, or `entry`, a module:Class; None where neither is named. Raises Refusal."""
    from compiler.program.loading import load_program

    if spec and entry:
        refuse(
            "compile verify",
            "--source-spec and --source-model both name the source's model",
            "wrong-usage",
            "pass one of them",
        )
    if length < 2:
        refuse("compile verify", f"--length {length}: it must be 2 or more", "wrong-usage")
    if not spec and not entry:
        return None
    from compiler.verify.compare import SourceModel

    if spec:
        program = load_program(spec)
        if program.spec.target.remote_code is None:
            message = "it renders no model code, so it has no source model to run"
            refuse(program.spec.path, message, "wrong-usage", "pass a spec whose target is `remote_code`")
        return SourceModel(program, length=length)
    assert entry is not None
    if entry.count(":") != 1:
        refuse("--source-model", f"{entry!r} is not of the form module:Class", "wrong-usage")
    return SourceModel(None, entry, config, length)


def faults(verdict: Verdict, model: str, out: Path) -> list[Diagnostic]:
    """The difference between the models, at the rules that explain it."""
    where = f", first in {verdict.module} (by {verdict.departs:.2g})" if verdict.module else ""
    message = (
        f"{f'{out} ' if verdict.rules else ''}differs from {model}{where}: logits by {verdict.difference:.2g} (the largest is "
        f"{verdict.scale:.3g}), KL {verdict.divergence:.1e} nats, the most likely token is the same in {verdict.argmax:.1%}"
    )
    if not verdict.rules:
        hint = (
            "no single rule explains it: compare the fields of config.json, such as theta, scaling, eps and heads"
            if verdict.searched
            else "too little memory to search for the rule at fault: the search takes three times the memory of a model"
        )
        return [Diagnostic(Span(str(out)), message, "diverging-model", hint)]
    hint = (
        "without the weights of this rule the two models agree: check its names and ops"
        if len(verdict.rules) == 1
        else f"without the weights of these rules the two models agree: {listed(r.name or r.targets[0] for r in verdict.rules)}"
    )
    return [Diagnostic(rule.span, message, "diverging-model", hint) for rule in verdict.rules]


def _without_model(program: Program, asked: Request, out: Path) -> dict[str, Any]:
    from compiler.verify.round_trip import round_trip

    back = round_trip(program, asked, out)
    if back.differences:
        raise Refusal(
            Diagnostic(
                d.rule.span,
                f"{d.name} {d.what} when {out} is converted back",
                "changed-tensor",
                "convert the source again",
            )
            for d in back.differences
        )
    rounded = f", {back.rounded} up to rounding" if back.rounded else ""
    text = f"round trip exact ({back.equal} tensors{rounded}); {NOT_CHECKED}"
    return {"text": text, "proof": "weights", "equal": back.equal, "rounded": back.rounded}

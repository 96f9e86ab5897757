"""`compile verify SPEC SOURCE OUT`: does the converted model compute what the source computes?"""

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

PROVES_LESS = (
    "no source model ran, and that the bytes come back does not show that both layouts are understood rightly; "
    "--source-spec or --source-model does"
)


def verify_parser() -> Parser:
    parser = Parser("verify", "Hold a converted folder to the model that it was made from.")
    parser.add_spec()
    parser.add_source()
    parser.add_argument("out", type=Path, metavar="OUT", help="the converted folder")
    parser.add_settings()
    add_source_model(parser)
    parser.add_json()
    parser.set_defaults(checksums=False)
    return parser


def add_source_model(parser: argparse.ArgumentParser) -> None:
    """What names the source model; `run --verify` takes it, too."""
    parser.add_argument(
        "--source-spec",
        metavar="SPEC",
        help="the spec with code of its own that reads the same source, run as its model",
    )
    parser.add_argument("--source-model", metavar="MODULE:CLASS", help="the source's own model, importable from here")
    parser.add_argument(
        "--source-config", type=Path, metavar="FILE", help="the config of --source-model, where --config is another"
    )
    parser.add_argument("--length", type=int, default=64, metavar="N", help="how many tokens to run (default: 64)")


def verify(options: argparse.Namespace) -> int:
    from compiler.jobs.detect import named_program

    notes, asked = Notes(silent=options.json), request(options)
    result = verified(options, named_program(options.spec, asked, notes), asked, options.out)
    print_json(result | {"notes": notes.lines()}) if options.json else print(f"{options.out}: {result['text']}")
    return 0


def verified(options: argparse.Namespace, program: Program, asked: Request, out: Path) -> dict[str, Any]:
    """What was found, where it is good: numbers, and a text for people. Raises Refusal where it is not."""
    model = source_model_of(options.source_spec, options.source_model, options.source_config, options.length)
    if model is None:
        return _without_model(program, asked, out)
    from compiler.verify.compare import verify as compare

    found = compare(program, asked, out, model)
    if not found.agrees:
        raise Refusal(faults(found, str(model), out))
    text = (
        f"computes what {model} computes on {found.tokens} tokens in float32: logits differ by at most "
        f"{found.difference:.2g} (the largest is {found.scale:.3g}), KL {found.divergence:.1e} nats, "
        f"the best token is the same in {found.argmax:.1%}"
    )
    return {"text": text, "proof": "logits", "model": str(model)} | numbers(found)


def numbers(found: Verdict) -> dict[str, Any]:
    """A verdict for tools."""
    names = ("difference", "scale", "divergence", "argmax", "tokens")
    return {name: getattr(found, name) for name in names}


def source_model_of(spec: str | None, entry: str | None, config: Path | None, length: int) -> SourceModel | None:
    """The source's model: that of a spec, or `entry`, a module:Class; None where neither is named. Raises Refusal."""
    from compiler.program.loading import load_program

    if spec and entry:
        refuse("compile verify", "--source-spec and --source-model name one thing twice", "wrong-usage", "give one")
    if length < 2:
        refuse("compile verify", f"--length {length}: a model needs two tokens or more", "wrong-usage")
    if not spec and not entry:
        return None
    from compiler.verify.compare import SourceModel

    if spec:
        program = load_program(spec)
        if program.spec.target.remote_code is None:
            message = "it has no code of its own, so that its model is not that of the source"
            refuse(program.spec.path, message, "wrong-usage", "name a spec whose target is `remote_code`")
        return SourceModel(program, length=length)
    assert entry is not None
    if entry.count(":") != 1:
        refuse("--source-model", f"{entry!r} is not of the form module:Class", "wrong-usage")
    return SourceModel(None, entry, config, length)


def faults(found: Verdict, model: str, out: Path) -> list[Diagnostic]:
    """Where the models part, at the rules that were found guilty."""
    where = f" first in {found.module} (by {found.departs:.2g})" if found.module else ""
    message = (
        f"{f'{out} ' if found.rules else ''}departs from {model}{where}: logits differ by {found.difference:.2g} (the largest is "
        f"{found.scale:.3g}), KL {found.divergence:.1e} nats, the best token is the same in {found.argmax:.1%}"
    )
    if not found.rules:
        hint = (
            "no single rule explains it: compare the fields of config.json, such as theta, scaling, eps and heads"
            if found.searched
            else "there is too little memory to look for the rule at fault: it takes three times that of a model"
        )
        return [Diagnostic(Span(str(out)), message, "diverging-model", hint)]
    hint = (
        "with the weights of this rule out of play the two agree: look at its names and ops"
        if len(found.rules) == 1
        else f"with the weights of these rules out of play the two agree: {listed(r.name or r.targets[0] for r in found.rules)}"
    )
    return [Diagnostic(rule.span, message, "diverging-model", hint) for rule in found.rules]


def _without_model(program: Program, asked: Request, out: Path) -> dict[str, Any]:
    from compiler.verify.round_trip import round_trip

    back = round_trip(program, asked, out)
    if back.differences:
        raise Refusal(
            Diagnostic(d.rule.span, f"{d.name} {d.what}, seen from {out}", "changed-tensor", "convert the source anew")
            for d in back.differences
        )
    rounded = f", {back.rounded} up to rounding" if back.rounded else ""
    text = f"gives {back.equal} tensors of the source back bit for bit{rounded}; {PROVES_LESS}"
    return {"text": text, "proof": "weights", "equal": back.equal, "rounded": back.rounded}

"""`compile verify SPEC SOURCE OUT`: compares a converted folder with the model that it was made from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.cli.options import Parser, notes, print_json, program_of, request
from compiler.diagnostics import Diagnostic, Refusal, Span, listed, refuse

if TYPE_CHECKING:
    from compiler.verify.compare import SourceModel, Verdict

LOGITS_NOT_CHECKED = "logits NOT checked — pass --source-spec SPEC or --source-model MODULE:CLASS to compare them"


def verify_parser() -> Parser:
    parser = Parser("verify", "Compare a converted folder with the model that it was made from.")
    parser.add_spec()
    parser.add_source()
    parser.add_argument("out", type=Path, metavar="OUT", help="the converted folder")
    parser.add_settings()
    add_source_model(parser)
    parser.add_json()
    parser.set_defaults(dtype=None, reverse=False)
    return parser


def add_source_model(parser: argparse.ArgumentParser) -> None:
    """The options that name the source model; `run --verify` has them too."""
    parser.add_argument(
        "--source-spec",
        metavar="SPEC",
        help="a remote_code spec that reads the same source: its rendered model is the source model",
    )
    parser.add_argument("--source-model", metavar="MODULE:CLASS", help="the source's own model, importable from here")
    parser.add_argument(
        "--source-config", type=Path, metavar="FILE", help="the config of --source-model, where --config is another"
    )
    parser.add_argument("--length", type=int, default=64, metavar="N", help="how many tokens to run (default: 64)")
    parser.add_argument(
        "--require-logits",
        action="store_true",
        help="fail (exit status 1) unless the outputs of both models are compared",
    )


def verify(options: argparse.Namespace) -> int:
    lines, say = notes(options)
    result = verified(options, program_of(options, say), request(options), options.out)
    print_json(result | {"notes": lines}) if options.json else print(f"{options.out}: {result['text']}")
    return 0


def verified(options: argparse.Namespace, program: Any, asked: Any, out: Path) -> dict[str, Any]:
    """The result of a successful check: its numbers, and a `text` for people. Raises Refusal where a check fails."""
    model = source_model(options)
    if model is None:
        result = _round_trip(program, asked, out)
        if options.require_logits:
            refuse(str(out), result["text"], "logits-not-checked", "--require-logits needs a source model")
        return result
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


def source_model(options: argparse.Namespace) -> SourceModel | None:
    """The source model that the options name, or None. Raises Refusal."""
    from compiler.program.loading import load_program

    if options.source_spec and options.source_model:
        refuse(
            "compile verify", "--source-spec and --source-model both name the source model", "wrong-usage", "pass one"
        )
    if options.length < 2:
        refuse("compile verify", f"--length {options.length}: the least is 2", "wrong-usage")
    if not options.source_spec and not options.source_model:
        return None
    from compiler.verify.compare import SourceModel

    if options.source_spec:
        program = load_program(options.source_spec)
        if program.spec.target.remote_code is None:
            message = "--source-spec needs a spec whose target is `remote_code`, and this one has none"
            refuse(program.spec.path, message, "wrong-usage", "pass the source's own class with --source-model")
        return SourceModel(program, length=options.length)
    if options.source_model.count(":") != 1:
        refuse("--source-model", f"{options.source_model!r} is not MODULE:CLASS", "wrong-usage")
    return SourceModel(None, options.source_model, options.source_config, options.length)


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


def _round_trip(program: Any, asked: Any, out: Path) -> dict[str, Any]:
    from compiler.verify.round_trip import round_trip

    found = round_trip(program, asked, out)
    if found.differences:
        raise Refusal(
            Diagnostic(d.rule.span, f"{d.name} {d.text}, from {out}", "changed-tensor", "convert the source again")
            for d in found.differences
        )
    counts = [f"exact ({found.equal} tensors)"] * bool(found.equal or not found.rounded)
    counts += [f"equal up to rounding ({found.rounded} tensors)"] * bool(found.rounded)
    text = f"round trip {', '.join(counts)}; {LOGITS_NOT_CHECKED}"
    return {"text": text, "proof": "weights", "equal": found.equal, "rounded": found.rounded}
